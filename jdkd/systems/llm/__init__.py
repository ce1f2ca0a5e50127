"""Language models as rankers, behind any OpenAI-compatible HTTP endpoint.

vLLM, TGI and llama.cpp's server have one. Every answer is kept in the workdir as it arrives.
"""
