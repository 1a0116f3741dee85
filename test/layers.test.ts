import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { test } from 'node:test';

/**
 * Each room of src/ may import from itself and from those before it (docs/ARCHITECTURE.md, "Folders"). A file belongs to
 * the longest name that its path begins with.
 */
const LAYERS = [
  'base',
  'host',
  'codec',
  'schema',
  'wire/nbd',
  'wire/vhost-user',
  'wire/qmp',
  'wire/migration',
  'wire/sftp',
  'view',
  'web',
  'block',
  'drivers',
  'jobs',
  'attach',
  'programs/arguments',
  'programs/io',
  'monitor',
  'library',
  'programs/img',
  'programs',
];

/** What a newcomer sees at first: a dozen rooms of the engine and its programs, and two of what is seen of them. */
const MOST_TOP_LEVEL_ROOMS = 14;

/** Only host/ may touch the machine, and the programs' entries (for argv and exit). */
const MACHINE_MODULES = /^(node:(fs|net|dgram|child_process|worker_threads|os)(\/.*)?|koffi)$/;
const MAY_TOUCH_MACHINE = ['host', 'programs'];

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

const layerOf = (path: string): string =>
  LAYERS.filter((layer) => path.startsWith(`src/${layer}/`)).sort((a, b) => b.length - a.length)[0] ?? '';

test('a newcomer sees no more rooms than can be held in mind', () => {
  const rooms = readdirSync('src', { withFileTypes: true }).filter((entry) => entry.isDirectory());
  assert.ok(rooms.length <= MOST_TOP_LEVEL_ROOMS, rooms.map((room) => room.name).join(' '));
});

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

/** The files of src/ that a file needs when it runs: imports of types alone are gone by then. */
function filesNeededBy(path: string): string[] {
  const text = readFileSync(path, 'utf8');
  return [...text.matchAll(/^(?:import|export)\s([^;]*?)from '(\.[^']+)';/gm)]
    .filter(([, names]) => !isTypeOnly(names ?? ''))
    .map(([, , target]) => normalize(join(dirname(path), target ?? '')).replace(/\.js$/, '.ts'));
}

function isTypeOnly(names: string): boolean {
  if (/^type\s/.test(names)) return true;
  const list = /^\{([^}]*)\}\s*$/.exec(names)?.[1];
  return list?.split(',').every((name) => name.trim() === '' || /^type\s/.test(name.trim())) ?? false;
}

/** The ways from a file back to itself, one for each group of files that need each other. */
function circles(graph: ReadonlyMap<string, readonly string[]>): string[][] {
  const found: string[][] = [];
  const done = new Set<string>();
  const visit = (path: string, trail: string[]): void => {
    const at = trail.indexOf(path);
    if (at >= 0) found.push([...trail.slice(at), path]);
    if (at >= 0 || done.has(path)) return;
    for (const next of graph.get(path) ?? []) visit(next, [...trail, path]);
    done.add(path);
  };
  for (const path of graph.keys()) visit(path, []);
  return found;
}

/** Descriptions say what sets a driver apart (src/block/driver.ts). A role of a child and a kind of export are no driver. */
const BY_NAME =
  /(?<!role |type )(?:[!=]==|case) '(?:qcow2|raw|file|host_device|nbd|null-co|blkdebug|copy-on-read|copy-before-write|mirror_top|commit_top)'/;

test('no driver is known by its name above the drivers', () => {
  const wrong: string[] = [];
  for (const path of sources('src')) {
    if (path.endsWith('.test.ts') || ['drivers', 'schema'].includes(layerOf(path))) continue;
    for (const line of readFileSync(path, 'utf8').split('\n'))
      if (BY_NAME.test(line)) wrong.push(`${path}: ${line}`);
  }
  assert.deepEqual(wrong, []);
});

test('families of commands say which parts of the engine they need', () => {
  const whole = ['parts.ts', 'engine.ts', 'register.ts'].map((name) => `src/monitor/${name}`);
  const wrong = [...sources('src/monitor')].filter(
    (path) => !whole.includes(path) && readFileSync(path, 'utf8').includes('EngineParts'),
  );
  assert.deepEqual(wrong, []);
});

test('no file needs itself by way of others', () => {
  const files = [...sources('src')].filter((path) => !path.endsWith('.test.ts'));
  const graph = new Map(files.map((path) => [path, filesNeededBy(path)]));
  assert.deepEqual(
    circles(
      new Map([
        ['a', ['b']],
        ['b', ['c']],
        ['c', ['b']],
      ]),
    ),
    [['b', 'c', 'b']],
  );
  assert.deepEqual(circles(graph), []);
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

/** Files that a text names by a path: `src/...`, or what is in src/ or beside the text. */
function* namedFiles(path: string): Generator<string> {
  const text = readFileSync(path, 'utf8');
  for (const [name] of text.matchAll(/(?<![\w./-])[\w-]+(?:\/[\w.-]+)*\/[\w.-]+\.(?:ts|mjs|md)\b/g))
    yield name;
}

test('files that docs name by their path are there', () => {
  const texts = ['README.md', 'CONTRIBUTING.md', ...[...markdown('docs'), ...markdown('src')]];
  const wrong: string[] = [];
  let count = 0;
  for (const text of texts) {
    for (const name of namedFiles(text)) {
      if (name.startsWith('NAME/')) continue;
      count++;
      const places = [name, join('src', name), join(dirname(text), name), join('src/drivers/qcow2', name)];
      if (!places.some((place) => existsSync(place))) wrong.push(`${text}: ${name}`);
    }
  }
  assert.ok(count > 20);
  assert.deepEqual(wrong, []);
});

function* markdown(dir: string): Generator<string> {
  for (const entry of readdirSync(dir, { withFileTypes: true })) {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) yield* markdown(path);
    else if (entry.name.endsWith('.md')) yield path;
  }
}
