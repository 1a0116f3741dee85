// Replays QEMU's "Live Block Device Operations" against livedisk: every scenario of walkthrough.py (an external
// script: test/document's, or WALKTHROUGH), with qemu-img and qemu-io as judges. Scenarios that need
// a command that livedisk refuses are listed below with that command, and must fail for just that reason.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

/** Scenario and the command or argument of it that is not there yet. */
const MISSING = {};

const root = resolve(import.meta.dirname ?? '.', '..');
const script = process.env.WALKTHROUGH ?? join(root, 'test/document/walkthrough.py');
if (!existsSync(script)) {
  console.log(`# SKIP the document's scenarios: no walkthrough at WALKTHROUGH`);
  process.exit(0);
}
for (const tool of ['qemu-img', 'qemu-io', 'python3']) {
  if (spawnSync(tool, ['--version']).error) {
    console.log(`# SKIP the document's scenarios: ${tool} is not installed`);
    process.exit(0);
  }
}

const program = join(root, 'dist/livedisk.cjs');
const work = mkdtempSync(join(tmpdir(), 'livedisk-document-'));
const quote = (word) => `'${word}'`;
const livedisk = (subcommand) => [process.execPath, program, subcommand].map(quote).join(' ');
const names = process.argv.slice(2);
const result = spawnSync('python3', [script, ...names], {
  stdio: 'inherit',
  env: {
    ...process.env,
    QEMU: livedisk('run'),
    QSD: livedisk('storage-daemon'),
    QEMU_IMG: livedisk('img'),
    OUT: join(work, 'out'),
    WORK: join(work, 'work'),
  },
});
let failed = result.error ? 1 : 0;
let passed = 0;
const results = JSON.parse(readFileSync(join(work, 'out/results.json'), 'utf8'));
for (const [name, { ok, why }] of Object.entries(results)) {
  const missing = MISSING[name];
  if (ok && missing === undefined) passed++;
  else if (!ok && missing !== undefined && why.includes(missing))
    console.log(`${name}: needs ${missing}, refused by name`);
  else {
    failed++;
    console.log(ok ? `${name}: passes now, but is listed as missing ${missing}` : `${name}: ${why}`);
  }
}
rmSync(work, { recursive: true, force: true });
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
