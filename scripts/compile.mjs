// Compiles src/ and test/ file by file, so that a run of many test files translates each source once: tsx does it anew
// in each process, which is a quarter of all their time.
import { build } from 'esbuild';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';

const root = resolve(import.meta.dirname, '..');
const folder = join(root, '.compiled');

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
    try {
      process.kill(Number(name), 0);
    } catch {
      rmSync(join(folder, name), { recursive: true, force: true });
    }
  }
}

/** Answers the folder, which goes with this process; in it each source as a module of JavaScript at its own path. */
export async function compile() {
  removeLeftOver();
  const outdir = join(folder, String(process.pid));
  mkdirSync(outdir, { recursive: true });
  process.on('exit', () => rmSync(outdir, { recursive: true, force: true }));
  await build({
    absWorkingDir: root,
    entryPoints: [...sources('src'), ...sources('test')],
    outbase: '.',
    outdir,
    bundle: false,
    format: 'esm',
    platform: 'node',
    target: 'node20.19',
    sourcemap: 'linked',
    sourcesContent: false,
    logLevel: 'warning',
    plugins: [ofTheSource],
  });
  return outdir;
}
