import { cpSync, existsSync, readdirSync, rmSync, statSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import type { ToolAnswer } from '../kit/tool-answer.js';
import { NAMES } from './img-grammar.js';
import { asBefore, infoAsBefore } from './later-words.js';
import type { ToolPair } from './tool-pair.js';
import { comparable } from './tool-table.js';

const BOTH = ['ours', 'theirs'] as const;

/** What of an answer has to be alike: not times, rates, what depends on the file system, nor where a writer puts data. */
function adapted(line: string, { code, stdout, stderr }: ToolAnswer): ToolAnswer {
  const adapt = (text: string): string =>
    withoutMeasures(comparable(text))
      .replace(/#block\d+/g, '#block')
      .trimEnd();
  const isMap = line.startsWith('img map') && !stdout.startsWith('[');
  return { code, stdout: isMap ? adapt(comparableTable(stdout)) : adapt(stdout), stderr: adapt(stderr) };
}

function withoutMeasures(text: string): string {
  return (
    text
      .replace(/^disk size: .*$/gm, 'disk size: x')
      .replace(/"actual-size": \d+/g, '"actual-size": 0')
      .replace(/completed in \d+\.\d+ seconds/g, 'completed in x seconds')
      // Said by livedisk alone.
      .replace(/^qemu-img: warning: a commit changes what other images show.*\n?/gm, '')
      // Drawn anew for each image.
      .replace(/(cid"?: )\d+/g, '$1x')
      .replace(/uuid: .*/g, 'uuid: x')
      .replace(/"uuid": ".*?"/g, '"uuid": "x"')
      .replace(/(iters"?: )\d+/g, '$1x')
      // Snapshots' dates.
      .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'date')
      .replace(/"date-(n?sec)": \d+/g, '"date-$1": 0')
      .replace(/"vm-clock-(n?sec)": \d+/g, '"vm-clock-$1": 0')
  );
}

/** A table of img map without where data lies; what continues is one stretch. */
function comparableTable(text: string): string {
  const rows: Array<{ start: number; end: number; file: string }> = [];
  for (const line of text.split('\n').slice(1)) {
    const [start = '', length = '', , file = ''] = line.split(/\s+/);
    // Where a raw file has its holes is the writer's affair.
    if (start === '' || /^(.*\.raw|new\d)$/.test(file)) continue;
    const last = rows.at(-1);
    const end = Number(start) + Number(length);
    if (last?.end === Number(start) && last.file === file) last.end = end;
    else rows.push({ start: Number(start), end, file });
  }
  return rows.map(({ start, end, file }) => `${start} ${end} ${file}`).join('\n');
}

/** QEMU 7.2 now and then fails to measure how long a password's hash takes. */
const FLAKY = 'Unable to get accurate CPU usage';
const MAX_TRIES = 30;

/** Does a line with either tool; answers what is not alike, or ''. */
export async function differenceOf(pair: ToolPair, line: string): Promise<string> {
  let [theirs, ours] = await pair.answers(line);
  for (let tries = 0; tries < MAX_TRIES && theirs.stderr.includes(FLAKY); tries++)
    [theirs, ours] = await pair.answers(line);
  if (ours.code !== 0 && /^img (create|convert|dd) /.test(line)) forgetTarget(pair, line);
  const [expected, actual] = [asBefore(theirs, ours), ours].map((answer) =>
    JSON.stringify(adapted(line, answer)),
  );
  return actual === expected ? '' : `theirs ${expected}\n  ours   ${actual}`;
}

/** An image that could not be made is as it was (ours), or destroyed (theirs): both sides go on with ours. */
function forgetTarget(pair: ToolPair, line: string): void {
  const target = line.split(/[ =]/).findLast((word) => NAMES.some(([name]) => name === word)) ?? '';
  const [stem = ''] = target.split('.');
  for (const name of imageNames(pair)) {
    if (name !== 'data' && name !== target && !name.startsWith(`${stem}-`)) continue;
    rmSync(pair.path('theirs', name), { force: true });
    const ours = pair.path('ours', name);
    if (existsSync(ours)) cpSync(ours, pair.path('theirs', name), { preserveTimestamps: true });
  }
}

function imageNames(pair: ToolPair): Set<string> {
  return new Set(BOTH.flatMap((side) => readdirSync(pair.path(side, '.'))));
}

const SECRET = ['--object', 'secret,id=sec0,data=letmein'];

/** What QEMU says of the images that either side has in the end, where that is not the same. */
export function imagesDiffer(pair: ToolPair): string[] {
  const differ: string[] = [];
  for (const name of imageNames(pair)) {
    const [ours, theirs] = [pair.path('ours', name), pair.path('theirs', name)];
    if (!existsSync(ours) || !existsSync(theirs)) {
      differ.push(`${name} is missing ${existsSync(ours) ? 'there' : 'here'}`);
      continue;
    }
    if (statSync(ours).mtimeMs === statSync(theirs).mtimeMs) continue;
    const seen = (side: 'ours' | 'theirs'): string => whatIsSeen(pair, side, name);
    const [a, b] = [seen('theirs'), seen('ours')];
    if (a !== b) differ.push(`${name}:\n  theirs ${a}\n  ours   ${b}`);
  }
  return differ;
}

/** What an image says of itself, what check says, and what it holds. */
function whatIsSeen(pair: ToolPair, side: 'ours' | 'theirs', name: string): string {
  const run = (args: readonly string[], program = 'qemu-img'): string => {
    const done = spawnSync(program, args, { cwd: pair.path(side, '.'), encoding: 'utf8', timeout: 120_000 });
    return `${done.status} ${done.stdout} ${done.stderr}`;
  };
  const info = infoAsBefore(run(['info', '--output=json', name]));
  const said = /"format": "(\w+)"[^]*?"format-specific"|"format": "(\w+)"/.exec(info);
  const format = said?.[1] ?? said?.[2] ?? 'raw';
  const isEncrypted = info.includes('"encrypted": true');
  const luks = isEncrypted ? (format === 'luks' ? 'key-secret=sec0,' : 'encrypt.key-secret=sec0,') : '';
  const options = `${luks}driver=${format},file.filename=${name}`;
  const content = run([...['convert', '--image-opts', ...SECRET], ...['-O', 'raw', options, '../flat']]);
  const hash = content.startsWith('0') ? run(['../flat'], 'sha256sum') : content;
  const check = format === 'qcow2' ? run(['check', '-q', '-f', 'qcow2', name]) : '';
  return withoutMeasures([info, hash, check].join(' ').replace(/\s+/g, ' '));
}
