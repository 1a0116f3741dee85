// Builds dist/: the program (a CommonJS bootstrap and ES module chunks, one a subcommand) and the library's entries;
// declarations too unless --no-types. With --if-stale nothing happens when dist/ is newer than every source, and
// declarations are left out: what `npm start` needs.
import { build } from 'esbuild';
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

process.chdir(join(dirname(fileURLToPath(import.meta.url)), '..'));
const flags = new Set(process.argv.slice(2));
const PROGRAM = 'dist/livedisk.cjs';

function newest(path) {
  const entry = statSync(path);
  if (!entry.isDirectory()) return entry.mtimeMs;
  return Math.max(0, ...readdirSync(path).map((name) => newest(join(path, name))));
}

const sources = ['src', 'scripts/build.mjs', 'package.json', 'package-lock.json'];
const isFresh = existsSync(PROGRAM) && statSync(PROGRAM).mtimeMs > Math.max(...sources.map(newest));
if (flags.has('--if-stale') && isFresh) process.exit(0);

/**
 * What chunks have of one another as plain constants, set once. Left to esbuild, each use of an imported name would go
 * through two getters that all names share: a tenth of a small request's time.
 */
function linkChunk(path) {
  const text = readFileSync(path, 'utf8')
    .replace(/^import \{([^}]*)\} from ("\.\/[^"]+");$/gm, (_, names, from) => {
      return `const {${names.replaceAll(' as ', ': ')}} = require(${from});`;
    })
    .replace(/^import ("\.\/[^"]+");$/gm, 'require($1);')
    .replace(/^export \{([^}]*)\};$/gm, (_, names) => {
      return `module.exports = {${names.replace(/(\S+) as (\S+?)(,?)$/gm, '$2: $1$3')}};`;
    });
  const left = /^(?:export\b|import .*"\.|\} from "\.).*$/m.exec(text);
  if (left) throw new Error(`${path}: not understood: ${left[0]}`);
  writeFileSync(path, text);
}

rmSync('dist', { recursive: true, force: true });
const common = {
  bundle: true,
  platform: 'node',
  target: 'node20.19',
  external: ['koffi', 'zstddec'],
  logLevel: 'warning',
  sourcemap: 'linked',
};
const licencesOf = (...names) =>
  names.map((name) => `${name}\n\n${readFileSync(`node_modules/${name}/LICENSE`, 'utf8')}`).join('\n');
// What compute threads run, whole in one file: a daemon reads it when it starts, and may start threads when the packages that were
// installed then are gone. CODEC_WORKER says where it is, seen from each of the others.
await build({
  ...common,
  external: ['koffi'],
  format: 'cjs',
  define: { 'import.meta.url': '__filename', CODEC_WORKER: '"codec-worker.cjs"' },
  entryPoints: ['src/codec/worker.ts'],
  outfile: 'dist/codec-worker.cjs',
});
writeFileSync('dist/codec-worker.LICENSES.txt', licencesOf('zstddec'));
const esm = { ...common, format: 'esm', splitting: true, define: { CODEC_WORKER: '"codec-worker.cjs"' } };
// Chunks come from ES modules only; as CommonJS they are loaded in half the time.
await build({
  ...esm,
  define: { CODEC_WORKER: '"../codec-worker.cjs"', PAGE_FOLDER: '"../page"' },
  entryPoints: { main: 'src/programs/main.ts' },
  outdir: 'dist/modules',
});
// The page of `livedisk web`, whole: it fetches nothing from elsewhere. What is in it of others says so beside it.
await build({
  bundle: true,
  minify: true,
  format: 'esm',
  target: 'es2022',
  legalComments: 'none',
  logLevel: 'warning',
  jsx: 'automatic',
  jsxImportSource: 'preact',
  entryPoints: { page: 'src/web/page/app.tsx', style: 'src/web/page/page.css' },
  entryNames: '[name]',
  outdir: 'dist/page',
});
renameSync('dist/page/style.css', 'dist/page/page.css');
copyFileSync('src/web/page/index.html', 'dist/page/index.html');
writeFileSync('dist/page/LICENSES.txt', licencesOf('preact', 'uplot'));
const chunks = readdirSync('dist/modules').filter((name) => name.endsWith('.js'));
for (const name of chunks) linkChunk(join('dist/modules', name));
await build({
  ...common,
  bundle: false,
  // The chunks' own module.exports.
  logOverride: { 'commonjs-variable-in-esm': 'silent' },
  external: undefined,
  format: 'cjs',
  entryPoints: chunks.map((name) => join('dist/modules', name)),
  outdir: 'dist/program',
  supported: { 'dynamic-import': false },
  define: { 'import.meta.url': '__filename' },
});
writeFileSync('dist/program/package.json', '{ "type": "commonjs" }\n');
rmSync('dist/modules', { recursive: true });
await build({
  ...esm,
  entryPoints: {
    index: 'src/index.ts',
    block: 'src/block/index.ts',
    codec: 'src/codec/index.ts',
    nbd: 'src/wire/nbd/index.ts',
    qmp: 'src/wire/qmp/index.ts',
  },
  outdir: 'dist',
});
if (!flags.has('--if-stale') && !flags.has('--no-types')) {
  const types = spawnSync('npx', ['tsc', '-p', 'tsconfig.types.json'], { stdio: 'inherit' });
  if (types.status !== 0) process.exit(1);
}
// Last, since its time says how fresh dist/ is.
await build({
  ...common,
  bundle: false,
  external: undefined,
  format: 'cjs',
  sourcemap: false,
  entryPoints: ['src/programs/bootstrap.cts'],
  outfile: PROGRAM,
  banner: { js: '#!/usr/bin/env node' },
});
const { chmodSync } = await import('node:fs');
chmodSync(PROGRAM, 0o755);
