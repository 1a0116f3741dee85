import assert from 'node:assert/strict';
import { test } from 'node:test';
import { seededBelow } from '../kit/crash-states.js';
import { ToolPair } from './tool-pair.js';
import { comparable, IMAGES, skip } from './tool-table.js';

/**
 * Random command lines and commands of qemu-io, sensible and not, given to either side's exerciser on copies of the same images:
 * exit status, what is printed, and the images in the end are alike. IO_SEED=7 is one run again, IO_PAIRS how many, IO_STEPS
 * lines in each. Left out: what ends or stops the program (abort, sigraise, wait_break), VM state (-b: io-vm-state.test.ts), tracing, and help,
 * which livedisk has in its own words, and reopening what -s has made, which QEMU does not find again.
 */
const SEEDS =
  process.env['IO_SEED'] === undefined
    ? Array.from({ length: Number(process.env['IO_PAIRS'] ?? 2) }, (_, i) => 1 + i)
    : [Number(process.env['IO_SEED'])];
const STEPS = Number(process.env['IO_STEPS'] ?? 25);

type Words = ReadonlyArray<readonly string[]>;

/** Each with a chance of one in four. */
const OPTIONS: Words = [
  ['-r'],
  ['-s'],
  ['-n'],
  ['-m'],
  ['-k', '-i threads', '-i native', '-i io_uring', '-i bad', '--aio=threads'],
  ['-t none', '-t writeback', '-t unsafe', '-t directsync', '-t writethrough', '-t bad', '--cache=off'],
  ['-d unmap', '-d ignore', '-d on', '-d bad', '--discard=off'],
  ['-C'],
  ['-U', '--force-share', '-z', '--nothing', '-f'],
];
const FILES = [
  ...[
    '-f qcow2 a.q',
    '-f qcow2 c.q',
    'c.q',
    'b.q',
    '-f raw r.raw',
    '-f raw r.raw',
    '-f nofmt a.q',
    'none',
    '',
  ],
  ...['--image-opts driver=qcow2,file.filename=c.q', '--image-opts driver=raw,size=1M,file.filename=r.raw'],
  ...['--image-opts -f raw a.q', 'a.q b.q', '--image-opts file.filename=a.q,force-share=off'],
];
const OFFSETS = [
  '0',
  '1M',
  '1000',
  '7M',
  '12M',
  '9.5M',
  '0x1000',
  '64k',
  '19M',
  '30M',
  '-1',
  'x',
  '1.5',
  '8E',
];
const LENGTHS = ['512', '64k', '1M', '700', '0', '3', '5000', '1k', '3G', 'x', '128k'];
const PATTERNS = ['1', '0', '0x5', '010', '256', 'x'];

interface Grammar {
  words: Words;
  /** What follows: each of them one of these; the last ones may lack. */
  operands: Words;
}

const RANGE: Words = [OFFSETS, LENGTHS];
const VECTOR: Words = [OFFSETS, LENGTHS, LENGTHS, ['512', '4k']];
const PATTERN = PATTERNS.map((pattern) => `-P ${pattern}`);

const COMMANDS: Readonly<Record<string, Grammar>> = {
  read: {
    words: [['-C'], ['-q'], ['-v'], ['-p'], PATTERN, ['-s 100', '-s x', '-s 1M'], ['-l 10', '-l 9M', '-l x']],
    operands: RANGE,
  },
  readv: { words: [['-C'], ['-q'], ['-v'], PATTERN, ['-z']], operands: VECTOR },
  aio_read: { words: [['-C'], ['-q'], ['-v'], ['-i'], PATTERN], operands: VECTOR },
  write: {
    words: [
      ['-C'],
      ['-q'],
      ['-c'],
      ['-f'],
      ['-n'],
      ['-u'],
      ['-z'],
      ['-p'],
      PATTERN,
      ['-s pattern', '-s none', '-s empty'],
    ],
    operands: RANGE,
  },
  writev: { words: [['-C'], ['-q'], ['-f'], PATTERN], operands: VECTOR },
  aio_write: { words: [['-C'], ['-q'], ['-f'], ['-i'], ['-u'], ['-z'], PATTERN], operands: VECTOR },
  discard: { words: [['-C'], ['-q'], ['-x']], operands: RANGE },
  alloc: { words: [], operands: RANGE },
  aio_flush: { words: [], operands: [['x']] },
  break: { words: [], operands: [['read_aio', 'nothing'], ['tag']] },
  remove_break: { words: [], operands: [['tag']] },
  resume: { words: [], operands: [['tag']] },
  flush: { words: [], operands: [['x']] },
  info: { words: [], operands: [] },
  length: { words: [], operands: [['x']] },
  map: { words: [], operands: [] },
  close: { words: [], operands: [] },
  quit: { words: [], operands: [] },
  sleep: { words: [], operands: [['1', '0', 'x', '0x2', '-1']] },
  truncate: {
    words: [['-m off', '-m falloc', '-m full', '-m metadata', '-m bad']],
    operands: [['11M', '1M', '20M', '5M', 'x', '-1']],
  },
  reopen: {
    words: [
      ['-r', '-w', '-r -w'],
      ['-c none', '-c bad', '-c unsafe'],
      ['-o lazy-refcounts=on', '-o x=y'],
    ],
    operands: [],
  },
  open: {
    words: [
      ['-r'],
      ['-s'],
      ['-n'],
      ['-C'],
      ['-k', '-i native', '-i bad', '-i threads'],
      ['-t none', '-t bad'],
      ['-d on', '-d bad'],
      ['-U'],
      ['-o driver=qcow2', '-o driver=raw', '-o driver=bad'],
    ],
    operands: [['a.q', 'c.q', 'r.raw', 'none']],
  },
  nothing: { words: [], operands: [] },
};

type Below = (bound: number) => number;

function commandOf(below: Below): string {
  const one = <T>(of: readonly T[]): T => of[below(of.length)] as T;
  const name = one(Object.keys(COMMANDS));
  const { words, operands } = COMMANDS[name] as Grammar;
  const given = words.filter(() => below(4) === 0).map(one);
  // Most often as many as there should be.
  const count = below(6) === 0 ? below(operands.length + 1) : Math.min(operands.length, 2 + below(3));
  // What is dumped stays short.
  const short = given.includes('-v')
    ? operands.map((texts) => (texts === LENGTHS ? ['512', '3', '700'] : texts))
    : operands;
  return [name, ...given, ...short.slice(0, count).map(one)].join(' ');
}

function lineOf(below: Below): string {
  const one = <T>(of: readonly T[]): T => of[below(of.length)] as T;
  const options = OPTIONS.filter(() => below(5) === 0).map(one);
  const commands = Array.from({ length: 1 + below(6) }, () => commandOf(below)).map((command) =>
    // When an asynchronous one tells of itself depends on the pace.
    command.startsWith('aio_') ? `-c '${command}' -c aio_flush` : `-c '${command}'`,
  );
  return ['io', ...options, ...commands, one(FILES)].filter((word) => word !== '').join(' ');
}

/** Nodes without a name get one by counting; help is livedisk's own. */
const adapted = (text: string): string =>
  comparable(text)
    .replace(/#block\d+/g, '#block')
    .replace(/^Usage: [^]*/m, 'help')
    .replace(/^(\w+) .*-- .*$/gm, '$1 help')
    .replace(/(\d+,\d+),[\d:.]+,[\d.]+,[\d.]+/g, '$1');

for (const seed of SEEDS)
  test(`random commands are answered alike by either exerciser, seed ${seed}`, { skip }, async (context) => {
    const pair = new ToolPair(context);
    pair.prepare(...IMAGES, 'printf abc >pattern; : >empty');
    const below = seededBelow(seed * 104_729);
    for (let i = 0; i < 20; i++) below(2);
    const lines: string[] = [];
    const differ: string[] = [];
    for (let step = 0; step < STEPS; step++) {
      const line = lineOf(below);
      if (/ -s .*'reopen/.test(line)) continue;
      lines.push(line);
      await pair.alike(line, adapted).catch((error: unknown) => {
        const { expected } = error as { expected?: { code?: number | null } };
        // QEMU's ended by a failed assertion of its own.
        if (expected?.code !== null) differ.push(String(error));
      });
      if (differ.length > 0 && process.env['IO_ALL'] === undefined) break;
    }
    assert.deepEqual(differ, [], `seed ${seed}:\n${lines.join('\n')}`);
    for (const name of ['a.q', 'b.q', 'c.q', 'r.raw'])
      pair.alikeInShell(
        `qemu-img convert -U -f ${name === 'r.raw' ? 'raw' : 'qcow2'} -O raw ${name} flat; cksum <flat`,
      );
  });
