import { spawnSync } from 'node:child_process';
import type { ToolAnswer } from '../kit/tool-answer.js';
import type { OwnAnswer } from './img-grammar.js';

const said = spawnSync('qemu-img', ['--version'], { encoding: 'utf8' }).stdout ?? '';
/** The qemu-img that is found first is of QEMU 8.0 or later: `npm run test:peers -- --peer=FOLDER`. */
export const IS_LATER = Number(/version (\d+)/.exec(said)?.[1] ?? 7) >= 8;

/** Lines that QEMU 10.0 answers otherwise than 7.2. */
export const LATER_ANSWERS: readonly OwnAnswer[] = [
  { line: /img snapshot (?!.*-[lacd] )/, row: '`img snapshot` without a word about what to do' },
  { line: /img create.*-F bad/, row: '`img create -u` says what it is about to make' },
  { line: /img bench.* -s 0/, row: 'a buffer of 0 bytes for `img bench`' },
];

/** Refusals that say the same in other words, or of two mistakes the other one. */
const LATER_REFUSALS: readonly OwnAnswer[] = [
  { line: /^qemu-img: .*\b(invalid .*(specified|: )|must be )/i, row: 'numbers that are none' },
  { line: /^qemu-img: --?\w+( \(-\w\))? expects/, row: 'words that are none of an option' },
  { line: /^qemu-img \w+: (un\w+|invalid|option|missing)/, row: 'options that are none' },
];

export const LATER_ROWS: readonly string[] = [
  ...[...LATER_ANSWERS, ...LATER_REFUSALS].map(({ row }) => row),
  ...['the files below an image', 'whether a LUKS header is apart', 'columns of the snapshots'],
];

/** An answer of a later QEMU's as 7.2 would give it, as far as `ours` is that. */
export function asBefore(theirs: ToolAnswer, ours: ToolAnswer): ToolAnswer {
  if (!IS_LATER) return theirs;
  const stdout = infoAsBefore(theirs.stdout);
  const stderr = theirs.stderr.replace(
    /^Try 'qemu-img \w+ --help' for more info$/m,
    "Try 'qemu-img --help' for more information",
  );
  const isRefusal = ours.code !== 0 && LATER_REFUSALS.some(({ line }) => line.test(stderr));
  return { ...theirs, stdout, stderr: isRefusal ? ours.stderr : stderr };
}

/** What `info` says, without what a later QEMU adds. */
export function infoAsBefore(text: string): string {
  return text
    .replace(/^(\s*)"children": \[\n[^]*?^\1\],?\n/gm, '')
    .replace(/^Child node .*\n(?: {4}.*\n?)*/gm, '')
    .replace(/^ *"detached-header": false,\n| *detached header: false\n/gm, '')
    .replace(
      /^ID {6}TAG( +)VM_SIZE( +)DATE {8}VM_CLOCK/m,
      (_, size: string, date: string) => `ID        TAG${size}VM SIZE${date}DATE     VM CLOCK`,
    )
    .replace(/^(\d+ {6,}\w+ .*\S) +\d\d(\d\d:\d\d:\d\d\.\d+ +\d*)$/gm, (_, start: string, clock: string) =>
      `${start} ${clock}`.replace(/^(\d+)/, '$1  '),
    );
}
