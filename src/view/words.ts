import type { Image, Job, User, View } from './model.js';
import { durationText, humanBytes } from './progress-meter.js';

/**
 * A name as a terminal may be given it: what would move the cursor, change colours or turn the direction of writing is
 * shown by its number.
 */
export function printable(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, (character) => {
    const code = character.codePointAt(0) ?? 0;
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u{${code.toString(16)}}`;
  });
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

/** `copy  64 MiB/s  guests change 2.0 MiB/s  3.1 s left`: what stands on a job's arrow below its name. */
export function paceText({ rate, dirtyRate, secondsLeft, outlook, stage, type }: Job): string {
  const isInBytes = !['create', 'amend'].includes(type);
  const parts: string[] = [];
  if (stage !== undefined) parts.push(stage);
  if (isInBytes && rate !== undefined && rate > 0) parts.push(`${humanBytes(rate)}/s`);
  if (dirtyRate !== undefined && dirtyRate > 0) parts.push(`guests change ${humanBytes(dirtyRate)}/s`);
  if (secondsLeft !== undefined) parts.push(`${durationText(secondsLeft)} left`);
  if (outlook !== undefined) parts.push(SHORT_OUTLOOKS[outlook] ?? outlook);
  return parts.join('  ');
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
    ({ phase, done, left }) => `${phase}: ${humanBytes(done)}${left > 0 ? `, ${humanBytes(left)} left` : ''}`,
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

/** The facts about an image that stand below its name, one a line; of all disks of a chain alike, the size is left out. */
export function factsOf(image: Image, share: number, diskBytes: number | undefined): string[] {
  const { driver, allocatedBytes, bitmaps, snapshotNames, virtualBytes } = image;
  const facts: string[] = [];
  if (image.kind !== 'image') return image.label === driver ? [] : [driver];
  facts.push(
    [driver, ...(image.isReadOnly ? ['ro'] : []), ...(image.isEncrypted ? ['encrypted'] : [])].join(' '),
  );
  if (allocatedBytes !== undefined) facts.push(`${humanBytes(allocatedBytes)} ${percentText(share)}`);
  if (virtualBytes !== diskBytes) facts.push(`disk ${humanBytes(virtualBytes)}`);
  if (snapshotNames.length > 0) facts.push(`${snapshotNames.length} snapshots`);
  for (const { name, dirtyBytes, isRecording } of bitmaps.slice(0, 3))
    facts.push(`bitmap ${printable(name)} ${humanBytes(dirtyBytes)}${isRecording ? '' : ' off'}`);
  if (bitmaps.length > 3) facts.push(`${bitmaps.length - 3} more bitmaps`);
  return facts;
}

/** `A: is marked corrupt`. */
export function warningLines(view: View): string[] {
  return view.images.flatMap((image) =>
    image.warnings.map((warning) => `${bracketed(image)} ${printable(warning)}`),
  );
}
