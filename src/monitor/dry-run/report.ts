import { BlockError } from '../../base/error.js';
import { MiB } from '../../base/limits.js';
import { hasProtocol } from '../../block/filename.js';
import type { Node } from '../../block/node.js';
import type { Host } from '../../host/host.js';
import type { Survey } from '../../jobs/plans/survey.js';
import type { CommandResult } from '../../schema/commands.js';
import { roomText } from '../../view/plan/expected.js';
import { humanBytes } from '../../view/progress-meter.js';

export type DryRun = NonNullable<CommandResult<'block-stream'>['x-dry-run']>;

/** What a copy is guessed to move a second where nothing was measured. */
const GUESSED_RATE = 200 * MiB;

/** Collects what a dry run tells. */
export class DryRunReport {
  readonly #refused: string[] = [];
  readonly #words: string[] = [];
  readonly #invalid: string[] = [];
  #survey: Pick<Survey, 'dataBytes' | 'zeroBytes' | 'unitBytes'> | undefined;
  #ends: readonly Node[] = [];
  #space: DryRun['space'];
  #link: DryRun['link'];

  get isRefused(): boolean {
    return this.#refused.length > 0;
  }

  say(sentence: string): void {
    this.#words.push(sentence);
  }

  refuse(why: string): void {
    if (!this.#refused.includes(why)) this.#refused.push(why);
  }

  /** Runs a check: what it throws for people is in the way. Answers what it answers. */
  async attempt<T>(check: () => Promise<T> | T): Promise<T | undefined> {
    try {
      return await check();
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.refuse(error.message);
      return undefined;
    }
  }

  spoils(image: string, why: string): void {
    this.#invalid.push(`${image} ${why}`);
  }

  ended(nodes: readonly Node[]): void {
    this.#ends = nodes;
  }

  surveyed(survey: Pick<Survey, 'dataBytes' | 'zeroBytes' | 'unitBytes'>): void {
    this.#survey = survey;
  }

  linked(link: DryRun['link']): void {
    this.#link = link;
  }

  /** Looks whether what a file grows by has its room, and may be written. */
  async checkRoom(host: Host, path: string, neededBytes: number): Promise<void> {
    const [stat, room] = await Promise.all([
      this.attempt(() => host.files.stat(path)),
      this.attempt(() => host.files.room(path)),
    ]);
    // What a device has, it has.
    if (!room || stat?.isBlockDevice === true) return;
    this.#space = { path, needed: neededBytes, free: room.freeBytes };
    if (!room.isWritable) this.refuse(`'${path}' may not be written to by this program`);
    if (room.freeBytes < neededBytes) {
      const lack = `${humanBytes(neededBytes)} are needed, ${humanBytes(room.freeBytes)} are free`;
      this.refuse(`the file system of '${path}' has too little room: ${lack}`);
    }
  }

  /** The same of a folder that files are made in. */
  async checkFolder(host: Host, folder: string, neededBytes: number): Promise<void> {
    const room = await this.attempt(() => host.files.room(folder));
    if (!room) return;
    if (!room.isWritable) this.refuse(`'${folder}' may not be written to by this program`);
    if (room.freeBytes < neededBytes)
      this.refuse(
        `'${folder}' has ${humanBytes(room.freeBytes)} of ${humanBytes(neededBytes)} for the buffer`,
      );
  }

  result(): DryRun {
    const { dataBytes = 0, zeroBytes = 0, unitBytes = 1 } = this.#survey ?? {};
    const rate = this.#link?.rate ?? GUESSED_RATE;
    const seconds = Math.ceil(dataBytes / rate);
    return {
      words: [...this.#words, ...this.#numbersInWords(dataBytes, seconds), ...this.#endsInWords()],
      refused: this.#refused,
      ...{ bytes: dataBytes, zero: zeroBytes },
      ...(this.#survey && { seconds, ...(unitBytes > 1 && { unit: unitBytes }) }),
      ends: this.#ends.map(({ name }) => name),
      invalid: this.#invalid,
      ...(this.#space && { space: this.#space }),
      ...(this.#link && { link: this.#link }),
    };
  }

  #numbersInWords(dataBytes: number, seconds: number): string[] {
    if (!this.#survey) return [];
    const pace = this.#link?.rate === undefined ? 'at 200 MiB a second' : 'at the rate of the link';
    const copied = `${humanBytes(dataBytes)} are copied, about ${seconds} s ${pace}.`;
    const space = this.#space;
    if (!space) return [copied];
    const { path, needed, free } = space;
    return [copied, roomText({ path, neededBytes: needed, freeBytes: free })];
  }

  #endsInWords(): string[] {
    if (this.#ends.length === 0) return [];
    const names = this.#ends.map(({ name }) => `[${name}]`).join(', ');
    return [`The disk does without ${names} afterwards; their files stay.`];
  }
}

/** The path of the file that a node's bytes are in; undefined: in none of this machine. */
export function fileOf({ storage }: Node): string | undefined {
  const { filename, driver } = storage;
  return driver.hasFolders === true && !hasProtocol(filename) ? filename : undefined;
}
