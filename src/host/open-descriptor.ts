import fs from 'node:fs';
import { Abandonable, deferred, type Deferred, type Slots } from '../base/async.js';
import { BlockError, errnoError } from '../base/error.js';
import { nodeError } from './call-error.js';

export interface DescriptorProperties {
  fd: number;
  path: string;
  isRemote: boolean;
  /** The places in the pool that remote files share. */
  remoteCalls: Slots;
  /** Called when the descriptor is closed. */
  release: () => void;
}

/** A descriptor and the calls in flight on it, which its end waits for. */
export class OpenDescriptor {
  readonly fd: number;
  readonly path: string;
  readonly isRemote: boolean;
  readonly #release: () => void;
  readonly #remoteCalls: Slots;
  readonly #requests = new Abandonable();
  #inFlight = 0;
  #idle: Deferred<void> | undefined;
  #closed = false;

  constructor({ fd, path, isRemote, remoteCalls, release }: DescriptorProperties) {
    this.fd = fd;
    this.path = path;
    this.isRemote = isRemote;
    this.#remoteCalls = remoteCalls;
    this.#release = release;
  }

  get isClosed(): boolean {
    return this.#closed;
  }

  /** Errors: closed; ECANCELED when it was abandoned. */
  check(): void {
    this.#requests.check();
    if (this.#closed) throw new BlockError('closed', `File '${this.path}' is closed`, { path: this.path });
  }

  /** Counts a request in flight, so that close() waits for it. `takesPlace`: one of those that remote files share. */
  async use<T>(request: () => Promise<T>, takesPlace = this.isRemote): Promise<T> {
    this.check();
    this.#inFlight++;
    return this.#requests.during(this.#counted(request, takesPlace));
  }

  async #counted<T>(request: () => Promise<T>, takesPlace: boolean): Promise<T> {
    try {
      return await (takesPlace ? this.#inTurn(request) : request());
    } finally {
      this.#inFlight--;
      if (this.#inFlight === 0) this.#idle?.resolve();
    }
  }

  /** Calls that do not return keep their places: those of other files have theirs. */
  async #inTurn<T>(request: () => Promise<T>): Promise<T> {
    await this.#remoteCalls.take();
    try {
      this.#requests.check();
      return await request();
    } finally {
      this.#remoteCalls.giveBack();
    }
  }

  /** Waits for requests in flight: a descriptor number given back too early would be somebody else's file. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#requests.during(this.#closeWhenIdle());
  }

  /** See HostFile. */
  abandon(): void {
    this.#requests.abandon(this.error('ECANCELED'));
    this.close().catch(() => undefined);
  }

  async #closeWhenIdle(): Promise<void> {
    if (this.#inFlight > 0) {
      this.#idle = deferred();
      await this.#idle.promise;
    }
    await new Promise<void>((resolve, reject) => {
      fs.close(this.fd, (error) => {
        this.#release();
        if (error) reject(nodeError(error, undefined, { path: this.path }));
        else resolve();
      });
    });
  }

  error(errno: string, offset?: number): BlockError {
    const { path } = this;
    return errnoError(errno, undefined, offset === undefined ? { path } : { path, offset });
  }
}
