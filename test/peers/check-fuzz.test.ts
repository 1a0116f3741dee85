import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { test } from 'node:test';
import { seededBelow } from '../kit/crash-states.js';
import { COPIED, DamagedQcow2 } from '../kit/damaged-qcow2.js';
import { DiskShelf } from '../kit/recorded-disk.js';
import { qcow2Driver } from '../../src/drivers/qcow2/driver.js';
import type { ToolAnswer } from '../kit/tool-answer.js';
import { ToolPair } from './tool-pair.js';

const missing = ['qemu-img', 'qemu-io'].find((tool) => spawnSync(tool, ['--version']).error);
const skip = missing === undefined ? false : `${missing} is not installed`;
/** `FUZZ_RUNS=500 FUZZ_SEED=1 npm run test:peers -- check-fuzz` runs longer. */
const RUNS = Number(process.env['FUZZ_RUNS'] ?? 10);
const FIRST_SEED = Number(process.env['FUZZ_SEED'] ?? Math.floor(Math.random() * 1e6));
const SIDES = ['ours', 'theirs'] as const;
const SIZE = 256 * 1024;
const UNIT = 512;
/** The last entry of the refcount table that is damaged. */
const LAST_REFERENCE = 3 * 8;
/**
 * Where QEMU's repair ends with less: its new refcount blocks would lie on broken old ones, or on what lies behind the
 * end of the file; what is a guest's data and a table at once is changed, and the guest's data with it.
 */
function endsWithLess({ stderr }: ToolAnswer): boolean {
  return (
    /ERROR writing refblock|still broken/.test(stderr) ||
    (stderr.includes('Rebuilding') && stderr.includes('exceeding the end'))
  );
}

type Below = (limit: number) => number;

/** An image that QEMU made, with data, zeroes, and maybe a snapshot. */
function makeImage(pair: ToolPair, below: Below): void {
  const clusterBytes = [512, 1024, 4096][below(3)];
  const refcountBits = [8, 16, 32][below(3)];
  const steps: string[] = [];
  const request = (): string => {
    const from = below(SIZE / UNIT);
    const count = 1 + below(Math.min(64, SIZE / UNIT - from));
    // Taken for L2 entries they are not compressed: of those offsets are told in other words.
    const fill = 1 + below(63) + 128 * below(2);
    const what = [`write -P ${fill}`, `write -P ${fill}`, 'write -z', 'write -z -u'][below(4)];
    return `-c '${what} ${from * UNIT} ${count * UNIT}'`;
  };
  const requests = (count: number): string => Array.from({ length: count }, request).join(' ');
  steps.push(
    `qemu-img create -q -f qcow2 -o cluster_size=${clusterBytes},refcount_bits=${refcountBits} a ${SIZE}`,
    `qemu-io ${requests(1 + below(8))} a >/dev/null`,
  );
  if (below(3) === 0)
    steps.push('qemu-img snapshot -c s a', `qemu-io ${requests(1 + below(4))} a >/dev/null`);
  pair.shell('theirs', steps.join('\n'));
}

/** Damages refcounts, L2 and L1 entries or the refcount table in a few places. */
function damage(image: DamagedQcow2, below: Below): void {
  const { clusterBytes } = image;
  const entries = clusterBytes / 8;
  const offsetOf = (entry: bigint): bigint => BigInt.asUintN(56, entry) - (entry % 512n);
  const clusters = Math.floor(image.bytes.length / clusterBytes);
  const somewhere = (): bigint => BigInt(below(clusters) * clusterBytes);
  const l1Entries = image.bytes.readUInt32BE(36);
  const isThere = (offset: number): boolean => offset + 8 <= image.bytes.length;
  for (let count = 1 + below(4); count > 0; count--) {
    const l1At = image.l1 + below(l1Entries) * 8;
    // Of an image that was cut off, a table may lie behind the end: that is damage enough.
    if (!isThere(l1At) || !isThere(image.refcountTable + LAST_REFERENCE)) return;
    const table = Number(offsetOf(image.u64(l1At)));
    // An entry of flags alone makes qemu-img take the header for a table.
    if (table === 0) continue;
    const at = table + below(entries) * 8;
    const block = Number(offsetOf(image.u64(image.refcountTable)));
    if (!isThere(at)) return;
    const damages: ReadonlyArray<() => void> = [
      () => image.bytes.writeUInt8(below(4), block + below(clusterBytes)),
      () => image.bytes.fill(0, block, block + 1 + below(clusterBytes)),
      () => image.set(at, BigInt.asUintN(64, image.u64(at) + COPIED)),
      () => image.set(l1At, BigInt.asUintN(64, image.u64(l1At) + COPIED)),
      () => image.set(at, somewhere() + COPIED),
      () => image.set(at, somewhere() + BigInt(below(2))),
      () => image.set(at, BigInt((clusters + below(4)) * clusterBytes) + COPIED),
      () => image.set(at, 0n),
      () => image.set(image.refcountTable, 0n),
      () => image.set(image.refcountTable + 8 * (1 + below(LAST_REFERENCE / 8)), BigInt(block)),
      () => image.set(image.refcountTable, image.u64(image.refcountTable) + BigInt(below(512))),
      // Of what has no header nobody sees anything.
      () => image.truncate(Math.max(clusterBytes, image.bytes.length - below(4 * clusterBytes))),
      () => image.grow(1 + below(3)),
    ];
    if (block > 0 && block + clusterBytes <= image.bytes.length) damages[below(damages.length)]?.();
  }
}

/** What livedisk's guest reads of each sector; undefined where it cannot. */
async function guestSees(content: Buffer): Promise<Array<string | undefined>> {
  const shelf = new DiskShelf([qcow2Driver]);
  shelf.put('image', content);
  const disk = await shelf.open('image', { readOnly: true });
  const seen: Array<string | undefined> = [];
  for (let at = 0; at < SIZE; at += UNIT)
    seen.push(
      await disk.read(at, UNIT).then(
        (bytes) => bytes.toString('hex'),
        () => undefined,
      ),
    );
  await disk.close();
  return seen;
}

/** Where refcounts are counted anew, each puts the new ones where it likes. */
function comparable(answer: ToolAnswer): ToolAnswer {
  if (!answer.stderr.includes('Rebuilding')) return answer;
  return { ...answer, stdout: answer.stdout.replace(/Image end offset: .*/, '') };
}

/** qemu-img's check of what livedisk repaired. */
async function judgedByQemu(pair: ToolPair): Promise<ToolAnswer> {
  pair.shell('theirs', 'cp ../ours/a judged');
  pair.shell('ours', 'cp a judged');
  return (await pair.answers('img check judged'))[0];
}

for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
  test(`a damaged image (seed ${seed}) is checked and repaired as qemu-img does`, { skip }, async (t) => {
    const below = seededBelow(seed);
    const pair = new ToolPair(t);
    makeImage(pair, below);
    const image = new DamagedQcow2(readFileSync(pair.path('theirs', 'a')));
    damage(image, below);
    for (const side of SIDES) writeFileSync(pair.path(side, 'damaged'), image.bytes);
    const before = await guestSees(image.bytes);
    for (const mode of ['', '-r leaks', '-r all']) {
      for (const side of SIDES) copyFileSync(pair.path(side, 'damaged'), pair.path(side, 'a'));
      const [theirs, ours] = await pair.answers(`img check ${mode} a`);
      const isKept = mode !== '' && theirs.stderr.includes('snapshot table');
      const givesUp = isKept || endsWithLess(theirs) || ours.stderr.includes('ERROR OFLAG_COPIED');
      if (!givesUp) assert.deepEqual(comparable(ours), comparable(theirs), `check ${mode}`);
      const after = await guestSees(readFileSync(pair.path('ours', 'a')));
      for (let i = 0; i < before.length; i++)
        if (before[i] !== undefined) assert.equal(after[i], before[i], `sector ${i} after check ${mode}`);
      // Incomplete entries of the snapshot table are told, not repaired.
      if (mode === '-r leaks' || isKept) continue;
      const [judged, again] = await pair.answers(`img check a`);
      if (!givesUp && !theirs.stderr.includes('Rebuilding')) assert.deepEqual(again, judged, 'checked again');
      if (mode === '') continue;
      const { stdout, stderr } = await judgedByQemu(pair);
      assert.doesNotMatch(
        stdout + stderr,
        /cluster \d+ refcount|Leaked|refcount block/,
        'refcounts are right',
      );
      if (givesUp) continue;
      // Each finds what the other repaired as it finds its own.
      pair.shell('theirs', 'cp a theirs; cp ../ours/a ours');
      pair.shell('ours', 'cp a ours; cp ../theirs/a theirs');
      await pair.alike('img check ours');
      await pair.alike('img check theirs');
      const compared = spawnSync('qemu-img', ['compare', 'ours', 'theirs'], { cwd: pair.path('ours', '.') });
      assert.ok(compared.status !== 1, 'the same for guests');
    }
  });
}
