import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

/**
 * Deletes one flush after the other from a copy of the code and shows for each which test fails without it.
 * `npm run sim:flushes [-- PART-OF-A-PATH[:LINE]]`, `-- --list` names them; fails when a flush turns out not to be missed by any test.
 */

/** Where flushes are that order writes; elsewhere they are only passed on. */
const FILES = [
  'src/block/activity.ts',
  'src/block/create.ts',
  'src/block/graph.ts',
  'src/block/node-io.ts',
  'src/block/reopen.ts',
  'src/drivers/file/io.ts',
  'src/drivers/qcow2/features/backing.ts',
  'src/drivers/qcow2/check/repair.ts',
  'src/drivers/qcow2/compact/carry-out.ts',
  'src/drivers/qcow2/create.ts',
  'src/drivers/qcow2/driver.ts',
  'src/drivers/qcow2/order/flush.ts',
  'src/drivers/qcow2/image.ts',
  'src/drivers/qcow2/mapping/resize.ts',
  'src/drivers/qcow2/space/bulk.ts',
  'src/drivers/qcow2/storage.ts',
  'src/drivers/raw/index.ts',
  'src/jobs/backup.ts',
  'src/jobs/commit.ts',
  'src/jobs/mirror-copy.ts',
  'src/jobs/mirror.ts',
  'src/jobs/stream.ts',
  'src/jobs/write-to-both.ts',
  'src/monitor/run-state.ts',
  'src/monitor/snapshot.ts',
];

const CALL =
  /(?:[\w$]+|this\.#[\w$]+)(?:\.[\w$#]+)*?\.?(?:flush|flushAll|#flush(?:Meta|All)|#writeAllBack|flushBeforeSnapshot|syncDirectory)\((?:[^()]|\([^()]*\))*\)/;
/** A call, not the definition of a function. */
const STATEMENT = /\bawait\b|return this\.#flush(?:Meta|All)/;

/** Tests by what they cost; the simulation comes last. */
const UNIT = [
  'src/drivers/qcow2/order/crash.test.ts',
  'test/sim/engine.test.ts',
  'test/sim/fua.test.ts',
  'test/sim/activity.test.ts',
  'test/sim/backing-reference.test.ts',
  'src/jobs/flushes.test.ts',
  'src/drivers/qcow2/driver.test.ts',
  'src/drivers/qcow2/check/repair.test.ts',
  'src/drivers/qcow2/dirty.test.ts',
  'src/drivers/qcow2/space/bulk.test.ts',
  'src/drivers/qcow2/compact/compact.test.ts',
];
const SIMULATION_SECONDS = 90;

interface Site {
  file: string;
  line: number;
  text: string;
}

function sites(wanted: string): Site[] {
  return FILES.flatMap((file) =>
    readFileSync(file, 'utf8')
      .split('\n')
      .map((text, index) => ({ file, line: index + 1, text }))
      .filter(({ text }) => STATEMENT.test(text) && CALL.test(text) && !text.includes('do await')),
  ).filter(({ file, line }) => `${file}:${line}:`.includes(wanted));
}

function run(folder: string, args: readonly string[], seconds: number): { failed: boolean; output: string } {
  const done = spawnSync(process.execPath, ['--import', 'tsx', ...args], {
    cwd: folder,
    env: { ...process.env, TEST_SHARE: '1' },
    encoding: 'utf8',
    timeout: seconds * 1000,
    killSignal: 'SIGKILL',
    maxBuffer: 64 * 1024 * 1024,
  });
  return { failed: done.status !== 0, output: done.stdout + done.stderr };
}

/** The name of a test that fails, or undefined. */
function whatFails(folder: string): string | undefined {
  for (const file of UNIT) {
    const { failed, output } = run(folder, ['--test', '--test-force-exit', '--test-reporter=tap', file], 120);
    const named = [...output.matchAll(/^not ok \d+ - (.*)$/gm)].map(([, name]) => name ?? '');
    if (failed) return `${file}: ${named[0] ?? 'does not end'}`;
  }
  const args = ['test/sim/main.ts', '--seed', '1', '--seconds', String(SIMULATION_SECONDS)];
  const { failed, output } = run(folder, args, 2 * SIMULATION_SECONDS);
  const named = /^seed \d+ failed: .*$/m.exec(output)?.[0];
  return failed ? `simulation: ${named ?? 'does not end'}` : undefined;
}

function main(): number {
  if (process.argv[2] === '--list') {
    for (const { file, line } of sites('')) console.log(`${file}:${line}`);
    return 0;
  }
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-flushes-'));
  let missed = 0;
  try {
    for (const name of ['src', 'test', 'package.json', 'tsconfig.json'])
      cpSync(name, join(folder, name), { recursive: true });
    symlinkSync(resolve('node_modules'), join(folder, 'node_modules'));
    for (const { file, line, text } of sites(process.argv[2] ?? '')) {
      const path = join(folder, file);
      const original = readFileSync(path, 'utf8');
      const lines = original.split('\n');
      lines[line - 1] = text.replace(CALL, 'Promise.resolve()');
      writeFileSync(path, lines.join('\n'));
      const found = whatFails(folder);
      writeFileSync(path, original);
      if (found === undefined) missed++;
      console.log(`${file}:${line}: ${text.trim()}\n    ${found ?? 'NOTHING FAILS WITHOUT IT'}`);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  console.log(missed === 0 ? 'every flush is missed' : `${missed} flushes are not missed`);
  return missed === 0 ? 0 : 1;
}

process.exitCode = main();
