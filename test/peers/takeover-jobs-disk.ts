import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { Daemon, PROGRAM, run, scratch } from './daemon.js';
import { SmallNbd } from './small-nbd.js';
import { DISK_BYTES, quit, update } from './takeover-sides.js';
import { KnowingWriter } from './takeover-writer.js';

export const MiB = 1024 * 1024;
/** However busy the machine is. */
export const PATIENCE_MS = 120_000;
/** A job at this pace is not done in a test's time. */
export const CRAWLING = 1024;

export interface JobInfo {
  device: string;
  type: string;
  status: string;
  offset: number;
  len: number;
  ready: boolean;
  speed: number;
}

/** Parts of the disk that no record lies in, by the layers that hold them: byte, first and last MiB. */
const PATTERNS = { base: [0x11, 40, 50], middle: [0x22, 44, 54], disk: [0x33, 50, 58] } as const;

/** A disk of three layers that a guest writes to, who knows what it wrote, and a daemon that is updated again and again. */
export class UpdatedDisk {
  readonly #context: TestContext;
  readonly folder: string;
  readonly daemon: Daemon;
  #serving: ChildProcess;
  #writer: KnowingWriter | undefined;

  private constructor(context: TestContext, folder: string, daemon: Daemon) {
    this.#context = context;
    this.folder = folder;
    this.daemon = daemon;
    this.#serving = daemon.process;
  }

  static async start(t: TestContext): Promise<UpdatedDisk> {
    const folder = scratch(t);
    const size = String(DISK_BYTES);
    run(folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', 'base.qcow2', size);
    for (const [name, below] of [
      ['middle', 'base'],
      ['disk', 'middle'],
    ])
      run(
        folder,
        'qemu-img',
        'create',
        '-q',
        '-f',
        'qcow2',
        '-b',
        `${below}.qcow2`,
        '-F',
        'qcow2',
        `${name}.qcow2`,
      );
    for (const [name, [byte, from, to]] of Object.entries(PATTERNS))
      run(folder, 'qemu-io', '-c', `write -q -P ${byte} ${from}M ${to - from}M`, `${name}.qcow2`);
    const layer = (name: string, backing?: string): string[] => [
      '-blockdev',
      `driver=qcow2,node-name=${name},file.driver=file,file.filename=${name}.qcow2` +
        (backing === undefined ? '' : `,backing=${backing}`) +
        (name === 'disk' ? '' : ',read-only=on'),
    ];
    const daemon = await Daemon.start(
      t,
      folder,
      [
        ...[process.execPath, PROGRAM, 'run', '-monitor', 'none'],
        ...[...layer('base'), ...layer('middle', 'base'), ...layer('disk', 'middle')],
        ...['-nbd-server', 'addr.type=unix,addr.path=nbd.sock'],
        ...['-export', 'type=nbd,id=e,node-name=disk,name=disk,writable=on'],
        ...['-qmp', 'unix:qmp.sock,server=on,wait=off'],
      ],
      'qmp.sock',
      ['x-livedisk'],
    );
    const disk = new UpdatedDisk(t, folder, daemon);
    await disk.letGuestWrite(64);
    return disk;
  }

  get serving(): ChildProcess {
    return this.#serving;
  }

  connect(): Promise<SmallNbd> {
    return SmallNbd.connect(join(this.folder, 'nbd.sock'), 'disk');
  }

  // ---- the guest

  async startGuest(): Promise<void> {
    this.#writer ??= new KnowingWriter(await this.connect());
    this.#writer.start();
  }

  /** The guest has written so many records more. */
  async untilWritten(records: number): Promise<void> {
    const writer = this.#writer;
    assert.ok(writer, 'a guest writes');
    const enough = writer.requests + records;
    while (writer.requests < enough) await new Promise((resolve) => setTimeout(resolve, 2));
  }

  async stopGuest(): Promise<void> {
    const writer = this.#writer;
    await writer?.stop();
    const client = await this.connect();
    await writer?.checkAll(client);
    client.close();
  }

  async letGuestWrite(records: number): Promise<void> {
    await this.startGuest();
    await this.untilWritten(records);
    await this.stopGuest();
  }

  /** Where no record lies. */
  async writeAside(offset: number, lengthBytes: number): Promise<void> {
    const client = await this.connect();
    await client.write(offset, Buffer.alloc(lengthBytes, 0x44));
    client.close();
  }

  /** All of the disk, while the guest is still. */
  async content(): Promise<Buffer> {
    const client = await this.connect();
    const pieces: Buffer[] = [];
    for (let at = 0; at < DISK_BYTES; at += MiB) pieces.push(Buffer.from(await client.read(at, MiB)));
    client.close();
    return Buffer.concat(pieces);
  }

  // ---- the daemon

  async addTarget(name: string, backing?: Buffer): Promise<void> {
    const file = `${name}.qcow2`;
    if (backing) writeFileSync(join(this.folder, `${name}.before`), backing);
    const below = backing ? ['-b', `${name}.before`, '-F', 'raw'] : [];
    run(this.folder, 'qemu-img', 'create', '-q', '-f', 'qcow2', ...below, file, String(DISK_BYTES));
    await this.daemon.execute('blockdev-add', {
      ...{ driver: 'qcow2', 'node-name': name },
      file: { driver: 'file', filename: file },
    });
  }

  execute(command: string, args: { [key: string]: unknown } = {}): Promise<unknown> {
    return this.daemon.execute(command, args);
  }

  async jobs(): Promise<JobInfo[]> {
    return (await this.daemon.execute('query-block-jobs')) as JobInfo[];
  }

  async job(id = 'j'): Promise<JobInfo> {
    const found = (await this.jobs()).find(({ device }) => device === id);
    assert.ok(found, `job ${id} is there`);
    return found;
  }

  async until(what: (job: JobInfo) => boolean, id = 'j'): Promise<JobInfo> {
    for (;;) {
      const job = await this.job(id);
      if (what(job)) return job;
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  /** A job has come so far, and goes on no faster than it crawls. */
  async crawlFrom(offset: number, id = 'j'): Promise<void> {
    await this.execute('block-job-set-speed', { device: id, speed: 4 * MiB });
    await this.until((job) => job.offset >= offset, id);
    await this.execute('block-job-set-speed', { device: id, speed: CRAWLING });
  }

  async update(): Promise<void> {
    const { daemon } = this;
    const how = { daemon, serving: this.#serving, timeout: PATIENCE_MS };
    this.#serving = await update(this.#context, this.folder, how);
  }

  /** The same, with what queries answer before and after, of jobs that rest. */
  async updateAlike(): Promise<void> {
    const before = await this.answers();
    await this.update();
    assert.deepEqual(await this.answers(), before);
  }

  async answers(): Promise<unknown> {
    const all: unknown[] = [];
    for (const query of [
      'query-block-jobs',
      'query-jobs',
      'query-named-block-nodes',
      'query-block',
      'query-block-exports',
    ])
      all.push(await this.daemon.execute(query));
    return JSON.parse(JSON.stringify(all, (key, value: unknown) => (CHANGING.has(key) ? 0 : value)));
  }

  quit(): Promise<void> {
    return quit(this.daemon, this.#serving);
  }

  /** After the end of all: what an image shows. */
  contentOf(image: string): Buffer {
    run(this.folder, 'qemu-img', 'check', '-q', image);
    run(this.folder, 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', image, 'content');
    return readFileSync(join(this.folder, 'content'));
  }

  assertSame(image: string, other: string): void {
    for (const one of [image, other]) run(this.folder, 'qemu-img', 'check', '-q', one);
    run(this.folder, 'qemu-img', 'compare', '-f', 'qcow2', '-F', 'qcow2', image, other);
  }
}

/** Of the last seconds; and what images say themselves, in which bitmaps are stored. */
const CHANGING: ReadonlySet<string> = new Set(['rate', 'dirty-rate', 'time-left', 'outlook', 'image']);
