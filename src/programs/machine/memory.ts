import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { assert } from '../../base/assert.js';
import { deferred, Notifier } from '../../base/async.js';
import { BlockError } from '../../base/error.js';
import type { GuestMemory } from '../../attach/guest-program.js';
import type { HostNet } from '../../host/host.js';
import type { JsonObject } from '../../schema/types.js';
import { type ByteStream, SocketStream } from '../../wire/migration/byte-stream.js';
import type { QmpClient } from '../../wire/qmp/client.js';

/** How the program says that its stream has come to an end. */
const ENDS = new Set(['completed', 'failed', 'cancelled']);

/** The memory of the guest, which the other program writes to and reads from a socket in a folder that nobody else sees. */
export class MachineMemory implements GuestMemory {
  readonly #net: HostNet;
  readonly #kill: () => void;
  #qmp: QmpClient | undefined;
  readonly #started = deferred();
  readonly #changed = new Notifier();
  #status = 'none';
  #hasEnded = false;
  #isLeaving = false;
  #hasLeft = false;
  #arriving: ByteStream | undefined;

  /** `kill`: ends the program, which is no good end. */
  constructor(net: HostNet, kill: () => void) {
    this.#net = net;
    this.#kill = kill;
    this.#started.promise.catch(() => undefined);
  }

  /** The program answers from here on. */
  begin(qmp: QmpClient): void {
    this.#qmp = qmp;
    this.#started.resolve();
  }

  /** The program has told how far its stream is. */
  heard(status: string): void {
    this.#status = status;
    this.#changed.notify();
  }

  /** The program is gone. */
  ended(): void {
    this.#hasEnded = true;
    this.#started.reject(goneError());
    this.#changed.notify();
  }

  /** It stops and resumes by itself. */
  get isLeaving(): boolean {
    return this.#isLeaving;
  }

  /** The program has written all of it, which the move has not sent yet. */
  get hasGone(): boolean {
    return this.#isLeaving && this.#status === 'completed';
  }

  async leave(send: (bytes: Buffer) => Promise<void>): Promise<void> {
    await inPrivateFolder(async (path) => {
      const connected = deferred<ByteStream>();
      const listener = await this.#net.listen({ type: 'unix', path }, (socket) =>
        connected.resolve(new SocketStream(socket)),
      );
      this.#isLeaving = this.#hasLeft = true;
      this.#status = 'none';
      let stream: ByteStream | undefined;
      try {
        await this.#execute('migrate', { uri: `unix:${path}` });
        stream = await Promise.race([connected.promise, this.#end()]);
        for (let bytes = await stream?.read(); bytes; bytes = await stream?.read()) await send(bytes);
        await this.#end();
        if (this.#status !== 'completed') throw await this.#why();
      } finally {
        stream?.destroy();
        await listener.close();
        this.#isLeaving = false;
      }
    });
  }

  giveUp(): void {
    if (this.#isLeaving) void this.#execute('migrate_cancel').catch(() => undefined);
  }

  async stay(isRunning: boolean): Promise<void> {
    if (!this.#hasLeft) return;
    if (!ENDS.has(this.#status) && this.#status !== 'none') {
      await this.#execute('migrate_cancel');
      await this.#end();
    }
    const { running } = (await this.#execute('query-status')) as { running: boolean };
    if (isRunning !== running) await this.#execute(isRunning ? 'cont' : 'stop');
  }

  async take(bytes: Buffer): Promise<void> {
    const stream = (this.#arriving ??= await this.#open());
    await stream.write(bytes).catch(() => {
      throw new BlockError('io', 'The program that runs the guest has refused its memory');
    });
  }

  async #open(): Promise<ByteStream> {
    await this.#started.promise;
    return inPrivateFolder(async (path) => {
      this.#status = 'none';
      await this.#execute('migrate-incoming', { uri: `unix:${path}` });
      return new SocketStream(await this.#net.connect({ type: 'unix', path }));
    });
  }

  async assertWhole(): Promise<void> {
    if (!this.#arriving)
      throw new BlockError('corrupt', 'The migration stream is damaged: it has no memory of a guest');
    await this.#arriving.finish();
    await this.#end();
    if (this.#status !== 'completed') throw await this.#why();
  }

  drop(): void {
    this.#kill();
  }

  async start(): Promise<void> {
    await this.#execute('cont');
  }

  /** Resolves when the stream has come to an end. Errors: closed when the program has. */
  async #end(): Promise<undefined> {
    await this.#changed.until(() => ENDS.has(this.#status) || this.#hasEnded);
    if (this.#hasEnded) throw goneError();
    return undefined;
  }

  async #why(): Promise<BlockError> {
    const told = (await this.#execute('query-migrate')) as { 'error-desc'?: string };
    const why = told['error-desc'] ?? 'without a reason';
    return new BlockError('io', `The program that runs the guest has ${this.#status} its move: ${why}`);
  }

  /** Errors: closed, when the program ends instead of an answer. */
  async #execute(command: string, args?: JsonObject): Promise<unknown> {
    assert(this.#qmp, 'the program answers');
    try {
      return await this.#qmp.execute(command, args);
    } catch (error) {
      throw error instanceof BlockError && error.kind === 'closed' ? goneError() : error;
    }
  }
}

function goneError(): BlockError {
  return new BlockError('closed', 'The program that runs the guest has ended');
}

/** `body` gets the path of a socket. */
async function inPrivateFolder<T>(body: (path: string) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'livedisk-machine-'));
  try {
    return await body(join(folder, 'memory'));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
