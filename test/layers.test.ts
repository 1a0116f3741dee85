import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { test } from 'node:test';

/** Each folder of src/ may import from itself and from those before it (docs/ARCHITECTURE.md, "Folders"). */
const LAYERS = [
  'base',
  'host',
  'schema',
  'nbd',
  'qmp',
  'block',
  'drivers',
  'jobs',
  'export',
  'guest',
  'io',
  'monitor',
  'library',
  'img',
  'cli',
  'testing',
];

/** Only host/ may touch the machine. The programs' entry (cli, for argv and exit) and testing are told apart. */
const MACHINE_MODULES = /^(node:(fs|net|dgram|child_process|worker_threads|os)(\/.*)?|koffi)$/;
const MAY_TOUCH_MACHINE = ['host', 'cli', 'testing'];

function* sources(dir: string): Generator<string> {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) yield* sources(path);
    else if (entry.name.endsWith('.ts')) yield path;
  }
}

function imports(path: string): string[] {
  const text = readFileSync(path, 'utf8');
  return [...text.matchAll(/(?:from|import|getBuiltinModule)\s*\(?\s*'([^']+)'/g)].map(
    (match) => match[1] ?? '',
  );
}

const layerOf = (path: string): string => path.split('/')[1] ?? '';

test('imports between the folders of src/ go one way', () => {
  const wrong: string[] = [];
  for (const path of sources('src')) {
    if (path.endsWith('.test.ts') || path === 'src/index.ts') continue;
    const from = LAYERS.indexOf(layerOf(path));
    assert.notEqual(from, -1, `${path} is in a folder that is no layer`);
    for (const target of imports(path)) {
      if (!target.startsWith('.')) continue;
      const to = normalize(join(dirname(path), target));
      if (LAYERS.indexOf(layerOf(to)) > from) wrong.push(`${path} imports ${to}`);
    }
  }
  assert.deepEqual(wrong, []);
});

test('no file of monitor/ or library/ imports itself by way of others', () => {
  const files = [...sources('src/monitor'), ...sources('src/library')].filter(
    (path) => !path.endsWith('.test.ts'),
  );
  const graph = new Map(
    files.map((path) => [
      path,
      imports(path)
        .filter((target) => target.startsWith('.'))
        .map((target) => normalize(join(dirname(path), target)).replace(/\.js$/, '.ts')),
    ]),
  );
  const reaches = (from: string, to: string, seen = new Set<string>()): boolean =>
    (graph.get(from) ?? []).some((next) => {
      if (next === to) return true;
      if (seen.has(next)) return false;
      seen.add(next);
      return reaches(next, to, seen);
    });
  assert.deepEqual(
    files.filter((path) => reaches(path, path)),
    [],
  );
});

test('only host/ imports modules that touch the machine', () => {
  const wrong: string[] = [];
  for (const path of sources('src')) {
    if (path.endsWith('.test.ts') || MAY_TOUCH_MACHINE.includes(layerOf(path))) continue;
    for (const target of imports(path))
      if (MACHINE_MODULES.test(target)) wrong.push(`${path} imports ${target}`);
  }
  assert.deepEqual(wrong, []);
});

test('no file is named utils', () => {
  const wrong = [...sources('src'), ...sources('test')].filter((path) =>
    /(^|\/)(utils?|helpers?|misc)\.ts$/.test(path),
  );
  assert.deepEqual(wrong, []);
});
