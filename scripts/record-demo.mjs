// Runs the demo and writes docs/pictures/demo.svg: its output as a terminal shows it, in motion, scrolled as it came.
// Needs the built program (npm run build).
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const TARGET = join(root, 'docs/pictures/demo.svg');

const COLUMNS = 80;
const ROWS = 24;
const LINE = 18;
const LETTER = 8.4;
const MARGIN = 14;
/** Pauses are shortened to this, and the end stays for a while. */
const LONGEST_PAUSE_S = 0.7;
const AT_END_S = 6;

const lines = await record();
writeFileSync(TARGET, draw(lines));
console.log(`${TARGET}: ${lines.length} lines, ${lines.at(-1).seconds.toFixed(1)} s`);

/** Each line, and when it is shown. */
function record() {
  const child = spawn(process.execPath, [join(root, 'dist/livedisk.cjs'), 'demo', '--once'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const found = [];
  let rest = '';
  let lastMs = Date.now();
  let seconds = 0;
  child.stdout.setEncoding('utf8').on('data', (chunk) => {
    seconds += Math.min((Date.now() - lastMs) / 1000, LONGEST_PAUSE_S);
    lastMs = Date.now();
    const parts = (rest + chunk).split('\n');
    rest = parts.pop();
    for (const text of parts) found.push({ text: text.slice(0, COLUMNS), seconds });
  });
  return new Promise((resolve, reject) =>
    child.once('close', (code) => (code === 0 ? resolve(found) : reject(new Error(`status ${code}`)))),
  );
}

function draw(list) {
  const [width, height] = [COLUMNS * LETTER + 2 * MARGIN, ROWS * LINE + 2 * MARGIN];
  const durationS = list.at(-1).seconds + AT_END_S;
  const texts = list.map(({ text }, i) => {
    const kind = text.startsWith('== ')
      ? ' class="t"'
      : / ms$|right|no errors$/.test(text)
        ? ' class="g"'
        : '';
    return text === '' ? '' : `<text${kind} x="0" y="${LINE * (i + 1) - 4}">${escape(text)}</text>`;
  });
  // What has not come yet lies below the window: it comes by scrolling alone.
  const frames = list.map(({ seconds }, i) => {
    const at = ((100 * seconds) / durationS).toFixed(2);
    return [at, `${at}%{transform:translateY(${LINE * (ROWS - i - 1)}px)}`];
  });
  const last = new Map(frames);
  const all = `translateY(${LINE * (ROWS - list.length)}px)`;
  return `<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="The demo: a guest writes while its chain of images is changed">
<style>
text{font:14px ui-monospace,Menlo,Consolas,monospace;fill:#d7dde3;white-space:pre}.t{fill:#6cb0ff;font-weight:600}.g{fill:#7cc48f}
@keyframes s{0%{transform:translateY(${LINE * ROWS}px)}${[...last.values()].join('')}100%{transform:${all}}}
#s{transform:${all};animation:s ${durationS.toFixed(1)}s step-end infinite}
@media (prefers-reduced-motion:reduce){#s{animation:none}}
</style>
<rect width="${width}" height="${height}" rx="8" fill="#14181c"/>
<clipPath id="w"><rect width="${COLUMNS * LETTER}" height="${ROWS * LINE}"/></clipPath>
<g transform="translate(${MARGIN} ${MARGIN})"><g clip-path="url(#w)"><g id="s" xml:space="preserve">
${texts.filter((text) => text !== '').join('\n')}
</g></g></g>
</svg>
`;
}

function escape(text) {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}
