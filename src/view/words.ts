import type { Chain, Image, Job, User, View } from './model.js';
import { durationText, humanBytes } from './progress-meter.js';

/** What moves a cursor, changes colours, turns the direction of writing, or is not seen at all. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}\p{Default_Ignorable_Code_Point}]/gu;

/** A name as a terminal or a page may be given it: what is not printable is shown by its number. */
export function printable(text: string): string {
  return text.replace(UNPRINTABLE, (character) => {
    const code = character.codePointAt(0) ?? 0;
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u{${code.toString(16)}}`;
  });
}

/** The same of a text of several lines, whose ends and tabs stay. */
export function printableLines(text: string): string {
  return text
    .split(/([\n\t])/)
    .map((part, i) => (i % 2 === 0 ? printable(part) : part))
    .join('');
}

/** A value as JSON that may be shown, and still is that value: what is not printable is written as JSON's escapes. */
export function printableJson(value: unknown, indent?: number): string {
  const json = JSON.stringify(
    value,
    (_key, one: unknown) => (typeof one === 'bigint' ? Number(one) : one),
    indent,
  );
  return printableEscapes(json);
}

function printableEscapes(json: string): string {
  return json.replace(UNPRINTABLE, (character) =>
    character === '\n'
      ? character
      : [...Array(character.length).keys()]
          .map((i) => `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`)
          .join(''),
  );
}

/** At most so many characters, the middle left out. */
export function clip(text: string, width: number): string {
  const characters = [...text];
  if (characters.length <= width) return text;
  const right = Math.floor((width - 1) / 2);
  return `${characters.slice(0, width - 1 - right).join('')}…${characters.slice(characters.length - right).join('')}`;
}

export function widthOf(text: string): number {
  return [...text].length;
}

export function pad(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - widthOf(text)));
}

/** `[A]`, a filter `(T)`, a group `{Q}`. */
export function bracketed({ kind, label }: Image): string {
  const text = printable(label);
  return kind === 'image' ? `[${text}]` : kind === 'filter' ? `(${text})` : `{${text}}`;
}

export function userText({ kind, label }: User): string {
  const text = printable(label);
  return kind === 'device' || kind === 'other' ? text : `${kind} ${text}`;
}

/** `[B], [C] --> [D]`. */
export function flowText({ from, to }: Job, images: ReadonlyMap<string, Image>): string {
  const named = (id: string): string => {
    const image = images.get(id);
    return image ? bracketed(image) : `[${printable(id)}]`;
  };
  const sources =
    from.length > 3
      ? [from[0] ?? '', from.at(-1) ?? ''].map(named).join(' ... ')
      : from.map(named).join(', ');
  return to === undefined ? sources : `${sources} --> ${named(to)}`;
}

/** `31%  2.5 MiB of 8.0 MiB  64 KiB/s  1.3 s left`. */
export function progressText({ percent, done, total, rate, secondsLeft, outlook, type }: Job): string {
  const isInBytes = !['create', 'amend'].includes(type);
  const parts = [`${percent}%`];
  if (isInBytes) parts.push(`${humanBytes(done)} of ${humanBytes(total)}`);
  if (isInBytes && rate !== undefined) parts.push(`${humanBytes(rate)}/s`);
  if (secondsLeft !== undefined) parts.push(`${durationText(secondsLeft)} left`);
  if (outlook !== undefined && OUTLOOKS[outlook] !== undefined) parts.push(OUTLOOKS[outlook]);
  return parts.join('  ');
}

/** `copy, 64 MiB/s, guests change 2.0 MiB/s, 3.1 s left`: what stands on a job's arrow below its name. */
export function paceText({ rate, dirtyRate, secondsLeft, outlook, stage, type }: Job): string {
  const isInBytes = !['create', 'amend'].includes(type);
  const parts: string[] = [];
  if (stage !== undefined) parts.push(printable(stage));
  if (isInBytes && rate !== undefined && rate > 0) parts.push(`${humanBytes(rate)}/s`);
  if (dirtyRate !== undefined && dirtyRate > 0) parts.push(`guests change ${humanBytes(dirtyRate)}/s`);
  if (secondsLeft !== undefined) parts.push(`${durationText(secondsLeft)} left`);
  if (outlook !== undefined) parts.push(SHORT_OUTLOOKS[outlook] ?? printable(outlook));
  return parts.join(', ');
}

const SHORT_OUTLOOKS: Readonly<Record<string, string>> = {
  'in-step': 'in step',
  converges: 'will be in step',
  'by-writing-to-both': 'by writing to both',
  held: 'held',
  stalled: 'stalled',
};

/** `copy: 62 MiB of 64 MiB`, a line each. */
export function stageLines({ stages = [] }: Job): string[] {
  return stages.map(
    ({ phase, done, left }) =>
      `${printable(phase)}: ${humanBytes(done)}${left > 0 ? `, ${humanBytes(left)} left` : ''}`,
  );
}

/** What is not as one hopes. */
const OUTLOOKS: Readonly<Record<string, string>> = {
  'by-writing-to-both': 'guests write faster than it copies: their writes go to both sides',
  stalled: 'stalled',
};

export function percentText(share: number): string {
  return share > 0 && share < 0.005 ? '<1%' : `${Math.round(share * 100)}%`;
}

/** An image's part of what its chain takes, or, once a map has told, of what its disk shows. */
export interface Part {
  /** 0 to 1. */
  readonly share: number;
  readonly isOfDisk: boolean;
}

export const NO_PART: Part = { share: 0, isOfDisk: false };

/** Of each image of a chain, beside its images. */
export function partsOf({ images, shares, provided }: Chain): Part[] {
  const all = provided?.reduce((sum, bytes) => sum + bytes, 0) ?? 0;
  return images.map((_, i) =>
    provided
      ? { share: all === 0 ? 0 : (provided[i] ?? 0) / all, isOfDisk: true }
      : { share: shares[i] ?? 0, isOfDisk: false },
  );
}

/**
 * The facts about an image that stand below its name, one a line; of all disks of a chain alike, the size is left out, and
 * ages that are nothing to speak of are too.
 */
export function factsOf(
  image: Image,
  { share, isOfDisk }: Part,
  diskBytes: number | undefined,
  leastAgeSeconds = 3600,
): string[] {
  const { driver, allocatedBytes, bitmaps, snapshotNames, virtualBytes, file } = image;
  const facts: string[] = [];
  if (image.kind !== 'image') return image.label === driver ? [] : [printable(driver)];
  const age =
    file?.ageSeconds === undefined || file.ageSeconds < leastAgeSeconds
      ? ''
      : `, ${ageText(file.ageSeconds)} old`;
  const words = [
    printable(driver),
    ...(image.isReadOnly ? ['ro'] : []),
    ...(image.isEncrypted ? ['encrypted'] : []),
  ];
  facts.push(words.join(' ') + age);
  if (allocatedBytes !== undefined)
    facts.push(`${humanBytes(allocatedBytes)}${isOfDisk ? ', shows' : ''} ${percentText(share)}`);
  if (virtualBytes !== diskBytes) facts.push(`disk ${humanBytes(virtualBytes)}`);
  if (snapshotNames.length > 0) facts.push(`${snapshotNames.length} snapshots`);
  for (const { name, dirtyBytes, isRecording } of bitmaps.slice(0, 3))
    facts.push(`bitmap ${printable(name)} ${humanBytes(dirtyBytes)}${isRecording ? '' : ' off'}`);
  if (bitmaps.length > 3) facts.push(`${bitmaps.length - 3} more bitmaps`);
  return facts;
}

/** `40 s`, `3 min`, `5 h`, `12 d`: as coarse as people say it. */
export function ageText(seconds: number): string {
  const units = [
    ['d', 86_400],
    ['h', 3600],
    ['min', 60],
  ] as const;
  for (const [unit, length] of units) if (seconds >= length) return `${Math.floor(seconds / length)} ${unit}`;
  return seconds < 10 ? 'a moment' : `${10 * Math.floor(seconds / 10)} s`;
}

/** `A: is marked corrupt`. */
export function warningLines(view: View): string[] {
  return view.images.flatMap((image) =>
    image.warnings.map((warning) => `${bracketed(image)} ${printable(warning)}`),
  );
}
