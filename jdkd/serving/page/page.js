// Asks every system the same question and shows their passages side by side. All text of passages
// goes through textContent, so nothing in it becomes markup.

const SHOWN = 320; // Characters of a passage before "Show all".
const BEFORE = 60; // Of them, at most, before the first word of the question.
const COMMON = new Set(
  ('a an and are as at be but by can did do does for from had has have how i if in into is it its ' +
   'not of on or s that the their them they this to was were what when where which who why will ' +
   'with you your').split(' '));
const WORD = /[\p{L}\p{N}]+/gu;

const at = (id) => document.getElementById(id);
const [form, input, status, results, nav] = [
  document.querySelector('form'), at('q'), at('status'), at('results'), at('systems')];
let systems = ['student'];
let running = new AbortController();

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const stem = (word) => word.toLocaleLowerCase().replace(/(?<=.{3})(es|s)$/u, '');

function wordsOf(query) {
  const words = (query.match(WORD) ?? []).map((word) => word.toLocaleLowerCase());
  const rare = words.filter((word) => !COMMON.has(word));
  return new Set((rare.length ? rare : words).map(stem));
}

// Appends a text in which the words of the question are marked.
function highlight(parent, text, words) {
  let end = 0;
  for (const match of text.matchAll(WORD)) {
    if (!words.has(stem(match[0]))) continue;
    parent.append(text.slice(end, match.index), element('mark', { textContent: match[0] }));
    end = match.index + match[0].length;
  }
  parent.append(text.slice(end));
  return parent;
}

// The part of a long text around the first word of the question.
function excerpt(text, words) {
  if (text.length <= SHOWN) return text;
  const first = [...text.matchAll(WORD)].find((match) => words.has(stem(match[0])))?.index ?? 0;
  let start = Math.max(0, Math.min(first - BEFORE, text.length - SHOWN));
  if (start) start = text.indexOf(' ', start) + 1 || start;
  const part = text.slice(start, start + SHOWN);
  const cut = start + SHOWN < text.length;
  return (start ? '… ' : '') + (cut ? part.replace(/\s+\S*$/u, '') + ' …' : part);
}

function passage(hit, words) {
  const body = highlight(element('p', { className: 'text' }), excerpt(hit.text, words), words);
  const title = highlight(element('h3'), hit.title || hit.id, words);
  title.prepend(`${hit.rank}. `);
  const score = element('span', { className: 'score', title: hit.id },
    element('span', { className: 'hidden', textContent: 'score ' }), hit.score.toFixed(3));
  const ranks = element('p', { className: 'ranks' });
  const item = element('article', {}, element('div', { className: 'top' }, title, score), body);
  if (hit.text.length > SHOWN) {
    const more = element('button', { className: 'more', type: 'button', textContent: 'Show all' });
    more.ariaExpanded = 'false';
    more.addEventListener('click', () => {
      const open = more.ariaExpanded === 'true';
      more.ariaExpanded = String(!open);
      more.textContent = open ? 'Show all' : 'Show less';
      body.replaceChildren();
      highlight(body, open ? excerpt(hit.text, words) : hit.text, words);
    });
    item.append(more);
  }
  item.append(ranks);
  item.dataset.id = hit.id;
  return element('li', {}, item);
}

function section(system, i) {
  const time = element('span', { className: 'time', textContent: 'searching …' });
  const list = element('ol');
  const heading = element('h2', { textContent: system, id: `system-${i}` });
  const made = element('section', {}, element('div', { className: 'head' }, heading, time), list);
  made.setAttribute('aria-labelledby', heading.id);
  return { made, time, list };
}

async function ask(system, query, signal) {
  const parameters = new URLSearchParams({ q: query, k: 10, system });
  const start = performance.now();
  const response = await fetch(`search?${parameters}`, { signal });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error.message);
  return { ...answer, total: performance.now() - start };
}

// Says beside each passage which rank the other systems give it.
function compare(answers) {
  const ranks = new Map(answers.map(({ system, hits }) =>
    [system, new Map(hits.map((hit) => [hit.id, hit.rank]))]));
  results.querySelectorAll('section').forEach((own, i) => {
    own.querySelectorAll('article').forEach((item) => {
      const others = systems.filter((system, j) => j !== i && ranks.has(system)).map((system) =>
        `${system}: ${ranks.get(system).get(item.dataset.id) ?? 'not among its 10'}`);
      item.querySelector('.ranks').textContent = others.join(' · ');
    });
  });
}

async function search(query) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  document.title = `${query} – jdkd search`;
  status.textContent = 'Searching …';
  results.setAttribute('aria-busy', 'true');
  await introduced;
  if (signal.aborted) return;
  const words = wordsOf(query);
  const sections = systems.map(section);
  results.replaceChildren(...sections.map(({ made }) => made));
  const answers = await Promise.all(systems.map(async (system, i) => {
    const { time, list, made } = sections[i];
    try {
      const answer = await ask(system, query, signal);
      time.textContent = `${answer.milliseconds.toFixed(0)} ms (${answer.total.toFixed(0)} ms with network)`;
      list.append(...answer.hits.map((hit) => passage(hit, words)));
      if (!answer.hits.length) made.append(element('p', { textContent: 'No passages.' }));
      return answer;
    } catch (error) {
      if (signal.aborted) return null;
      time.textContent = '';
      made.append(element('p', { className: 'error', role: 'alert', textContent: `Error: ${error.message}` }));
      return null;
    }
  }));
  if (signal.aborted) return;
  const answered = answers.filter((answer) => answer);
  compare(answered);
  results.removeAttribute('aria-busy');
  status.textContent = answered.map(({ system, hits, milliseconds }) =>
    `${system}: ${hits.length} passages in ${milliseconds.toFixed(0)} ms`).join('; ') || 'No answer.';
}

// Learns which systems the server has. Searches wait for it; typing does not.
async function introduce() {
  try {
    const health = await (await fetch('health')).json();
    systems = health.systems;
    at('about').textContent =
      `${health.model}, ${health.passages.toLocaleString('en')} passages, ${health.dimensions} dimensions`;
    nav.hidden = systems.length < 2;
    nav.append(...systems.map((system, i) =>
      element('a', { href: `#system-${i}`, textContent: system })));
    results.classList.toggle('one', systems.length < 2);
  } catch {
    status.textContent = 'The server does not answer.';
  }
}

const asked = () => new URLSearchParams(location.search).get('q')?.trim() ?? '';

function start() {
  input.value = asked();
  if (asked()) search(asked());
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  const query = input.value.trim();
  if (!query) return;
  history.pushState(null, '', `?${new URLSearchParams({ q: query })}`);
  search(query);
});
addEventListener('popstate', start);

const introduced = introduce();
if (asked()) start();
