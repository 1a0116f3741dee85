// Compiles src/ and test/ file by file, so that a run of many test files translates each source once: tsx does it anew
// in each process, which is a quarter of all their time. What has not changed since an earlier run is not translated again.
import { build, version } from 'esbuild';
import { createHash } from 'node:crypto';
import { existsSync, linkSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const root = resolve(import.meta.dirname, '..');
const folder = join(root, '.compiled');
/** What was compiled once, each file named by all that it is made of; a run has names of its own for the same files. */
const store = join(folder, 'store');
const PROGRAM = 'program';

function* sources(dir) {
  for (const entry of readdirSync(join(root, dir), { withFileTypes: true })) {
    const path = join(dir, entry.name);
    if (entry.isDirectory()) yield* sources(path);
    else if (entry.name.endsWith('.ts')) yield path;
  }
}

/** What a module asks about itself is answered for its source: files beside that, and not beside what is run, are meant. */
const ofTheSource = {
  name: 'of the source',
  setup({ onLoad }) {
    onLoad({ filter: /\.ts$/ }, ({ path }) => ({
      loader: 'ts',
      contents: readFileSync(path, 'utf8')
        .replaceAll('import.meta.url', JSON.stringify(pathToFileURL(path).href))
        .replaceAll('import.meta.dirname', JSON.stringify(dirname(path))),
    }));
  },
};

/** Those of runs that were killed. */
function removeLeftOver() {
  for (const name of existsSync(folder) ? readdirSync(folder) : []) {
    if (!/^\d+$/.test(name)) continue;
    try {
      process.kill(Number(name), 0);
    } catch {
      rmSync(join(folder, name), { recursive: true, force: true });
    }
  }
}

const hashOf = (...parts) =>
  parts.reduce((hash, part) => hash.update(part).update('\0'), createHash('sha256')).digest('hex');

/** Of each source, what its translation is named by in the store. */
function keysOf(paths) {
  const how = hashOf(version, root, readFileSync(import.meta.filename));
  return new Map(paths.map((path) => [path, hashOf(how, path, readFileSync(join(root, path)))]));
}

/** The second name is the first one's file. False: there is no first. */
function linked(from, to) {
  try {
    linkSync(from, to);
  } catch (error) {
    if (error.code === 'ENOENT') return false;
    // Another run was faster.
    if (error.code !== 'EEXIST') throw error;
  }
  return true;
}

const compiledName = (path) => path.replace(/\.ts$/, '.js');

/** Each source at its own path in `outdir`. */
async function compileSources(outdir, keys, common) {
  for (const dir of new Set([...keys.keys()].map(dirname))) mkdirSync(join(outdir, dir), { recursive: true });
  const names = (path, key) =>
    ['.map', ''].map((end) => [join(store, `${key}.js${end}`), join(outdir, `${compiledName(path)}${end}`)]);
  const missing = [...keys].filter(
    ([path, key]) => !names(path, key).every(([from, to]) => linked(from, to)),
  );
  if (missing.length === 0) return;
  for (const [path, key] of missing) for (const [, to] of names(path, key)) rmSync(to, { force: true });
  const entryPoints = missing.map(([path]) => path);
  await build({ ...common, entryPoints, outbase: '.', outdir, bundle: false });
  for (const [path, key] of missing) for (const [from, to] of names(path, key)) linked(to, from);
}

/** The program in few files, in `outdir`. */
async function compileProgram(outdir, key, common) {
  const kept = join(store, key);
  mkdirSync(outdir);
  if (!existsSync(kept)) {
    await build({
      ...common,
      entryPoints: ['src/programs/main.ts'],
      outdir,
      bundle: true,
      splitting: true,
      packages: 'external',
    });
    const draft = `${kept}.${process.pid}`;
    mkdirSync(draft);
    for (const name of readdirSync(outdir)) linkSync(join(outdir, name), join(draft, name));
    try {
      renameSync(draft, kept);
    } catch {
      // Another run was faster.
      rmSync(draft, { recursive: true });
    }
    return;
  }
  for (const name of readdirSync(kept)) linkSync(join(kept, name), join(outdir, name));
}

/** Keeps the store from growing for ever: what this run has not, goes; others' names of it stay good. */
function prune(needed) {
  const there = readdirSync(store);
  if (there.length < 4 * needed.size) return;
  for (const name of there)
    if (!needed.has(name)) rmSync(join(store, name), { recursive: true, force: true });
}

/**
 * Answers the folder, which goes with this process; in it each source as a module of JavaScript at its own path, and in
 * program/ the program in few files, which start in half the time.
 */
export async function compile() {
  removeLeftOver();
  const outdir = join(folder, String(process.pid));
  mkdirSync(outdir, { recursive: true });
  mkdirSync(store, { recursive: true });
  process.on('exit', () => rmSync(outdir, { recursive: true, force: true }));
  const common = {
    absWorkingDir: root,
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    sourcemap: 'linked',
    sourcesContent: false,
    logLevel: 'warning',
    plugins: [ofTheSource],
  };
  const keys = keysOf([...sources('src'), ...sources('test')]);
  const programKey = hashOf(
    PROGRAM,
    ...[...keys].filter(([path]) => path.startsWith('src')).map(([, key]) => key),
  );
  prune(new Set([programKey, ...[...keys.values()].flatMap((key) => [`${key}.js`, `${key}.js.map`])]));
  await Promise.all([
    compileSources(outdir, keys, common),
    compileProgram(join(outdir, PROGRAM), programKey, common),
  ]);
  return outdir;
}
