"""The launch scripts: a stand-in cloud whose machines are directories, and real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml
from absl import flags

import jdkd.main  # noqa: F401  Declares the flags.

pytestmark = pytest.mark.processes

ROOT = pathlib.Path(__file__).parents[1]

# Records its calls. A TPU is a directory with a home for each worker; what is sent to a worker runs
# there. `state` is what describe says, `fail` how many creations fail.
GCLOUD = r"""#!/bin/bash
printf '%s\n' "$*" >>"$CLOUD/calls"
cd "$CLOUD"
if [[ $1 == storage ]]; then
  url() { [[ $1 == gs://* ]] && echo "$CLOUD/bucket/${1#gs://}" || echo "$1"; }
  if [[ $2 == ls ]]; then
    [[ -e $(url "$3") ]] && exit 0
    echo 'ERROR: (gcloud.storage.ls) One or more URLs matched no objects.' >&2
    exit 1
  fi
  from=$(url "${@: -2:1}") to=$(url "${@: -1}")
  mkdir -p "$(dirname "$to")" && cp "$from" "$to"
  exit
fi
case "$4" in
  create)
    fail=$(cat fail 2>/dev/null || echo 0)
    if ((fail)); then echo $((fail - 1)) >fail; exit 1; fi
    for ((w = 0; w < WORKERS; w++)); do mkdir -p "vm/worker-$w"; done
    if [[ $3 == queued* ]]; then echo ACTIVE >state; else echo READY >state; fi
    ;;
  describe) cat state 2>/dev/null ;;
  delete) rm -rf vm state ;;
  scp) for home in vm/*; do cp "$5" "$home/jdkd.tar"; done ;;
  ssh)
    [[ $(cat state 2>/dev/null) =~ READY|ACTIVE && ! -e silent ]] || exit 255
    for argument in "$@"; do
      case $argument in
        --worker=*) which=${argument#*=} ;;
        --command=*) command=${argument#*=} ;;
      esac
    done
    [[ $which == all ]] && which='*'
    for home in vm/worker-$which; do
      (cd "$home" && HOME=$PWD WORKER=${home##*-} bash -c "$command") || exit
    done
    ;;
esac
"""
CURL = r"""#!/bin/bash
case ${@: -1} in
  */agent-worker-number) echo "$WORKER" ;;
  *) for ((w = 0; w < WORKERS; w++)); do ((w)) && printf ,; printf 'n:%s:10.0.0.%s' $w $w; done ;;
esac
"""
SUDO = r"""#!/bin/bash
echo "$WORKER: $*" >>"$CLOUD/sudo"
case $1 in
  mkdir) "$@" ;;
  tee) cat >>"$CLOUD/exports" ;;
esac
"""
# `python3 -m uv pip install` is recorded.
# `python3 -m uv venv ... DIRECTORY` makes an interpreter that is this: a run of STEPS steps, which
# a signal interrupts, and which ends where its machine is gone. Of a bucket it keeps the step.
PYTHON3 = r"""#!/bin/bash
case "$3 $4" in
  'pip install') echo "${@:8}" >>"$CLOUD/installs" ;;
  'pip freeze') echo jax==1.2.3 ;;
esac
if [[ $3 != venv ]]; then exit 0; fi
mkdir -p "${@: -1}/bin"
cat >"${@: -1}/bin/python" <<'END'
#!/bin/bash
workdir=${@: -1}
[[ $workdir == gs://* ]] && workdir=$CLOUD/bucket/${workdir#gs://} && mkdir -p "$workdir"
echo "$WORKER: $*" >>"$CLOUD/runs"
trap 'echo saved >"$workdir/saved"; exit 75' TERM
step=$(cat "$workdir/step" 2>/dev/null || echo 0)
echo "from step $step"
for ((; step < STEPS && WORKER == 0; step++)); do
  [[ -d $HOME ]] || exit 9
  echo $((step + 1)) >"$workdir/step"
  sleep 0.1
done
exit "$(cat "$CLOUD/code" 2>/dev/null || echo 0)"
END
chmod +x "${@: -1}/bin/python"
"""


@pytest.fixture
def cloud(tmp_path):
    """Where the cloud is, and launch(*arguments) which starts launch/tpu_vm.sh in it."""
    scripts = {'gcloud': GCLOUD, 'curl': CURL, 'sudo': SUDO, 'python3': PYTHON3}
    scripts |= dict.fromkeys(['pip', 'mountpoint'], '#!/bin/bash\n[[ $0 == */pip ]]\n')
    (tmp_path / 'bin').mkdir()
    for name, text in scripts.items():
        (tmp_path / 'bin' / name).write_text(text)
        (tmp_path / 'bin' / name).chmod(0o755)

    def launch(*arguments, workers=1, steps=3):
        env = {
            **os.environ,
            'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}',
            'CLOUD': str(tmp_path),
            'WORKERS': str(workers),
            'STEPS': str(steps),
            'WORKDIR': str(tmp_path / 'vm' / 'shared'),
            'PAUSE_SECONDS': '0.2',
        }
        return subprocess.Popen(
            ['bash', ROOT / 'launch' / 'tpu_vm.sh', *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return tmp_path, launch


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def wait_for(condition, seconds=30):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, 'waited too long'
        time.sleep(0.05)


def number(path):
    text = path.read_text().strip() if path.exists() else ''
    return int(text) if text else 0


def test_a_run_on_one_host_is_created_installed_started_and_followed(cloud):
    home, launch = cloud
    arguments = ('--type=v6e-8', '--', '--config.rounds=3', '--config.assistants=a b')
    up = launch('up', 'a', 'z1', *arguments)
    wait_for(lambda: number(home / 'vm/shared/step') == 3)
    status = launch('status', 'a', 'z1')
    assert 'TPU READY, run' in ended(status)[1]
    os.killpg(up.pid, signal.SIGTERM)  # As Ctrl-C does.
    calls = (home / 'calls').read_text().splitlines()
    assert calls[1] == (
        'compute tpus tpu-vm create a --zone=z1 --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e'
    )
    run = (home / 'runs').read_text()
    assert run == (
        '0: -m jdkd.main --config.rounds=3 --config.assistants=a b '
        f'--workdir {home / "vm/shared"}\n'
    )
    assert 'nfs' not in (home / 'sudo').read_text()


def test_all_workers_of_a_slice_run_and_share_the_workdir_of_the_first(cloud):
    home, launch = cloud
    code, _, err = ended(launch('watch', 'a', 'z1', '--type=v5litepod-16', workers=2))
    assert code == 0, err
    assert sorted(line[:2] for line in (home / 'runs').read_text().splitlines()) == ['0:', '1:']
    shared = home / 'vm/shared'
    options = f'rw,no_subtree_check,all_squash,anonuid={os.getuid()},anongid={os.getgid()}'
    assert (home / 'exports').read_text() == f'{shared} 10.0.0.1({options})'
    assert f'1: mount -t nfs 10.0.0.0:{shared} {shared}' in (home / 'sudo').read_text()


@pytest.mark.slow
def test_what_is_taken_away_is_created_again_and_goes_on(cloud):
    home, launch = cloud
    watch = launch(
        'watch', 'a', 'z1', '--queued', '--spot', '--bucket=gs://b/runs/a', workers=2, steps=40
    )
    copied = home / 'bucket/b/runs/a/step'
    wait_for(lambda: number(copied) >= 5)
    (home / 'fail').write_text('1')  # And the next creation fails, too.
    (home / 'state').write_text('SUSPENDED')
    (home / 'vm').rename(home / 'gone')
    code, _, err = ended(watch)
    assert code == 0, err
    assert number(copied) == 40 and 'was taken away' in err
    calls = (home / 'calls').read_text()
    created = [c for c in calls.splitlines() if 'queued-resources create' in c]
    assert created == 3 * [
        'compute tpus queued-resources create a --zone=z1 --node-id=a '
        '--accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --spot'
    ]
    assert 'queued-resources delete a --zone=z1 --force --quiet' in calls
    log = (home / 'vm/worker-0/jdkd-vm/run.log').read_text()
    assert number(copied) > int(log.split('from step ')[1].split()[0]) >= 5
    shared = home / 'vm/shared'
    assert (
        '--workdir gs://b/runs/a\n' in (home / 'runs').read_text()
        and not (shared / 'step').exists()
    )
    # The new machine installs the versions that the first resolved.
    pinned = f'--constraint {home}/vm/shared/requirements.lock'
    installs = (home / 'installs').read_text().splitlines()
    assert [pinned in line for line in installs] == [False, True, True, True]
    assert (home / 'bucket/b/runs/a/requirements.lock').read_text() == 'jax==1.2.3\n'


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_one_that_failed_does_not(cloud):
    home, launch = cloud
    (home / 'code').write_text('1')  # Of a run that is not stopped.
    watch = launch('watch', 'a', 'z1', steps=60)
    wait_for(lambda: number(home / 'vm/shared/step') >= 3)
    assert ended(launch('stop', 'a', 'z1'))[0] == 0
    assert (home / 'vm/shared/saved').exists()
    code, _, err = ended(watch)
    assert code == 1 and 'ended with code 1' in err
    assert len((home / 'runs').read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_run_that_a_restart_of_the_host_forgot_is_started_again(cloud):
    home, launch = cloud
    watch = launch('watch', 'a', 'z1', steps=100)
    wait_for(lambda: number(home / 'vm/shared/step') >= 3)
    (home / 'silent').touch()  # Nothing is known of a host that does not answer.
    time.sleep(3)
    (home / 'silent').unlink()
    assert len((home / 'runs').read_text().splitlines()) == 1
    kept = home / 'vm/worker-0/jdkd-vm'
    os.killpg(int((kept / 'pid').read_text()), signal.SIGKILL)
    (kept / 'pid').unlink()
    code, _, err = ended(watch)
    assert code == 0, err
    assert number(home / 'vm/shared/step') == 100
    assert len((home / 'runs').read_text().splitlines()) == 2


def test_a_bucket_that_cannot_be_read_is_never_written(cloud):
    home, launch = cloud
    (home / 'bin/gcloud').write_text(GCLOUD.replace('matched no objects', 'denied'))
    code, _, err = ended(launch('up', 'a', 'z1', '--bucket=gs://b/a'))
    assert code and 'gs://b/a cannot be read' in err
    assert 'storage cp' not in (home / 'calls').read_text() and not (home / 'runs').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['up', 'a'], 'launch/tpu_vm.sh up NAME ZONE'),
        (['up', 'a', 'z', '--spott'], "'--spott' is no option"),
        (['up', 'a', 'z', '--', '--workdir', 'x'], 'the workdir is on the TPU VM'),
    ],
)
def test_usage(cloud, arguments, message):
    home, launch = cloud
    code, _, err = ended(launch(*arguments))
    assert code == 2 and message in err and not (home / 'calls').exists()


@pytest.fixture
def local(tmp_path):
    """local(program, count) runs a program in place of jdkd.main."""
    (tmp_path / 'jdkd').mkdir()

    def start(program, count, **env):
        (tmp_path / 'jdkd' / 'main.py').write_text(program)
        return subprocess.Popen(
            ['bash', ROOT / 'launch' / 'local.sh', str(count), '--', '--x=1'],
            cwd=tmp_path,
            env={**os.environ, 'PYTHON': sys.executable, 'GRACE_SECONDS': '2', **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


SHOW = """import os, sys, time
index = int(sys.argv[-1].partition('=')[2])
print(*sys.argv[1:], os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True)
"""


@pytest.mark.slow
def test_local_processes_find_each_other_and_their_lines_are_told_apart(local):
    code, out, err = ended(local(SHOW, 2, CUDA_VISIBLE_DEVICES='0,1,5,7'))
    assert code == 0, err
    lines = sorted(out.splitlines())
    address = lines[0].split()[2]
    assert address.startswith('--coordinator=127.0.0.1:')
    assert lines == [
        f'[{i}] --x=1 {address} --num_processes=2 --process_index={i} {gpus}'
        for i, gpus in enumerate(('0,1', '5,7'))
    ]
    code, _, err = ended(local(SHOW, 3, CUDA_VISIBLE_DEVICES='0,1,5,7'))
    assert code == 2 and '4 GPUs cannot be shared out evenly among 3' in err


@pytest.mark.slow
def test_when_one_local_process_fails_the_others_are_stopped(local):
    # The first does not listen to SIGTERM; the second fails.
    program = SHOW + (
        'import signal\n'
        'if index == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)\n'
        'time.sleep(0.5); sys.exit(7)\n'
    )
    code, _, err = ended(local(program, 2, CUDA_VISIBLE_DEVICES=''))
    assert code == 7 and 'process 1 ended with code 7; stopping the others' in err


def test_a_signal_is_passed_on_to_local_processes(local):
    program = SHOW + (
        'import signal\n'
        'signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(75)))\n'
        'print("ready", flush=True); time.sleep(600)\n'
    )
    process = local(program, 2, CUDA_VISIBLE_DEVICES='')
    seen = 0
    while seen < 2:
        seen += 'ready' in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    code, out, _ = ended(process)
    assert code == 143 and out.count('told') == 2


@pytest.mark.parametrize(
    ('code', 'restarts', 'seconds', 'queued'),
    [
        (0, '', 0, False),
        (1, '', 9000, False),
        (75, '', 0, True),
        (75, '50', 9000, True),
        (75, '50', 0, False),
        (137, '4', 9000, True),
        (137, '5', 9000, False),
    ],
)
def test_a_stopped_slurm_job_queues_itself_again(tmp_path, code, restarts, seconds, queued):
    for name, script in {
        'srun': '#!/bin/bash\n[[ $1 == --kill-on-bad-exit=1 ]] || exit 99\nshift; exec "$@"\n',
        'scontrol': f'#!/bin/bash\necho "$@" >{tmp_path}/requeued\n',
        'python': f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/args\nexit {code}\n',
    }.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    env = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7'}
    env |= {'SLURM_RESTART_COUNT': restarts} if restarts else {}
    env |= {'SECONDS': str(seconds)}  # Bash counts from there.
    args = ['--config', 'mta4dpr:tiny', '--workdir', '/shared/a b']
    done = subprocess.run(['bash', ROOT / 'launch/slurm.sbatch', *args], env=env)
    assert done.returncode == code
    assert (tmp_path / 'args').read_text().splitlines() == ['-m', 'jdkd.main', *args]
    requeued = tmp_path / 'requeued'
    assert requeued.exists() == queued and (not queued or requeued.read_text() == 'requeue 7\n')


def test_the_jobset_starts_as_many_processes_as_it_says():
    job_set = yaml.safe_load((ROOT / 'launch/jobset.yaml').read_text())
    assert (job_set['apiVersion'], job_set['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    name, (workers,) = job_set['metadata']['name'], job_set['spec']['replicatedJobs']
    job = workers['template']['spec']
    assert job['parallelism'] == job['completions'] and job['completionMode'] == 'Indexed'
    (container,) = job['template']['spec']['containers']
    given = dict(argument.removeprefix('--').split('=', 1) for argument in container['args'])
    assert int(given['num_processes']) == job['parallelism']
    assert given['process_index'] == '$(JOB_COMPLETION_INDEX)'
    # JobSet names pods NAME-JOB-REPLICA-INDEX, in the domain NAME.
    assert given['coordinator'].partition(':')[0] == f'{name}-{workers["name"]}-0-0.{name}'
    mounts = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert given['workdir'].startswith(f'{mounts["workdir"]}/')
    assert all(argument.split('=')[0][2:] in flags.FLAGS for argument in container['args'])
