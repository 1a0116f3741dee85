import { BlockError, errnoError, errnoOf, errnoText, isUnsupported } from '../../base/error.js';
import type {
  ChangingChildren,
  ChildIo,
  DriverContext,
  DriverInfo,
  DriverInstance,
  IoDriver,
} from '../../block/driver.js';
import { RangeLock } from '../../block/range-lock.js';
import { type BlockStatus, Flag, hasFlag, type IoRequest } from '../../block/request.js';
import { writeSameBytes } from '../pass-through/same-bytes.js';
import { countVotes, type Version } from './vote.js';

const LIST = 'children';

export interface QuorumSettings {
  /** So many children must agree, or have done what was asked. */
  readonly threshold: number;
  /** Two children, of which the first is the reference: what differs is told, with its place. */
  readonly comparesTwo: boolean;
  readonly rewritesCorrupted: boolean;
  /** Children are asked one after the other, until one answers; else all, who vote. */
  readonly readsFirst: boolean;
}

interface Failure {
  readonly role: string;
  readonly error: unknown;
}

/** Several children that hold the same. */
export class QuorumNode implements DriverInstance, IoDriver {
  readonly requestAlignmentBytes = 1;
  readonly honoursFua = true;
  readonly canWriteZeroes = true;
  readonly io: IoDriver = this;
  readonly changingChildren: ChangingChildren;
  readonly #context: DriverContext;
  readonly #settings: QuorumSettings;
  /** No read sees one child before and another after a write. */
  readonly #ranges = new RangeLock();
  #lengthBytes: number;

  /** Errors: io where the children's sizes differ. */
  constructor(context: DriverContext, settings: QuorumSettings) {
    this.#context = context;
    this.#settings = settings;
    const [first = 0, ...others] = this.#children().map(([, child]) => child.lengthBytes);
    if (others.some((length) => length !== first)) throw sizesDiffer();
    this.#lengthBytes = first;
    this.changingChildren = this.#changes();
  }

  get lengthBytes(): number {
    return this.#lengthBytes;
  }

  #children(): Array<[role: string, child: ChildIo]> {
    return this.#context.listChildren(LIST).map((role) => [role, this.#context.child(role)]);
  }

  /** Errors: EIO where too few agree; the error of a child where too few could be read. Bad ones are told. */
  async read(request: IoRequest, from: number, lengthBytes: number, offset: number): Promise<void> {
    const { generation } = request;
    const rewrites = this.#settings.rewritesCorrupted && !this.#settings.readsFirst;
    let release = await this.#ranges.lockShared(offset, lengthBytes, request.signal);
    try {
      request.assertIs(generation);
      request.begin();
      let bytes = await this.#readOnce(offset, lengthBytes, rewrites ? 'look' : 'tell');
      if (bytes === undefined) {
        // Alone, so that nothing newer is overwritten.
        release();
        release = await this.#ranges.lockExclusive(offset, lengthBytes);
        bytes = await this.#readOnce(offset, lengthBytes, 'rewrite');
      }
      request.assertIs(generation);
      request.copyFrom(bytes ?? Buffer.alloc(0), from);
    } finally {
      release();
    }
  }

  /** Mode `look` answers undefined where children differ, and tells nothing of it. */
  async #readOnce(
    offset: number,
    lengthBytes: number,
    mode: 'look' | 'tell' | 'rewrite',
  ): Promise<Buffer | undefined> {
    if (this.#settings.readsFirst) return this.#readFirst(offset, lengthBytes);
    const said: Array<{ voter: string; bytes: Buffer }> = [];
    const failures = await this.#askAll('read', offset, lengthBytes, async (child, role) => {
      const bytes = Buffer.allocUnsafe(lengthBytes);
      if (!child.tryRead(offset, bytes)) await child.read(offset, bytes);
      said.push({ voter: role, bytes });
    });
    this.#assertEnough(said.length, failures, offset, lengthBytes);
    said.sort((a, b) => this.#placeOf(a.voter) - this.#placeOf(b.voter));
    const [winner, ...others] = countVotes(said);
    if (!winner) throw errnoError('EIO', undefined, { node: this.#context.nodeName, offset });
    if (others.length === 0) return winner.bytes;
    if (mode === 'look') return undefined;
    if (this.#settings.comparesTwo) throw this.#mismatch(said, offset, lengthBytes);
    if (winner.voters.length < this.#settings.threshold) throw this.#noQuorum(offset, lengthBytes);
    for (const role of losersOf(others)) this.#bad(role, 'read', offset, lengthBytes);
    if (mode === 'rewrite') await this.#rewrite(winner.bytes, losersOf(others), offset);
    return winner.bytes;
  }

  #placeOf(role: string): number {
    return this.#context.listChildren(LIST).indexOf(role);
  }

  async #readFirst(offset: number, lengthBytes: number): Promise<Buffer> {
    let failure: unknown;
    for (const [role, child] of this.#children()) {
      const bytes = Buffer.allocUnsafe(lengthBytes);
      try {
        if (!child.tryRead(offset, bytes)) await child.read(offset, bytes);
        return bytes;
      } catch (error) {
        failure = error;
        this.#bad(role, 'read', offset, lengthBytes, error);
      }
    }
    throw failure;
  }

  /** What cannot be mended is found again by the next read. */
  async #rewrite(bytes: Buffer, roles: readonly string[], offset: number): Promise<void> {
    await Promise.allSettled(roles.map((role) => this.#context.child(role).write(offset, bytes, Flag.none)));
  }

  async write(
    request: IoRequest,
    from: number,
    lengthBytes: number,
    offset: number,
    flags: number,
  ): Promise<void> {
    await writeSameBytes(this.#ranges, { request, from, lengthBytes, offset }, (bytes) =>
      this.#change('write', offset, lengthBytes, async (child) => {
        if (!child.tryWrite(offset, bytes, flags)) await child.write(offset, bytes, flags);
      }),
    );
  }

  async writeZeroes(offset: number, lengthBytes: number, flags: number): Promise<void> {
    const release = await this.#ranges.lockExclusive(offset, lengthBytes);
    try {
      await this.#change(
        'write',
        offset,
        lengthBytes,
        (child) => child.writeZeroes(offset, lengthBytes, flags),
        hasFlag(flags, Flag.noFallback),
      );
    } finally {
      release();
    }
  }

  /** The children may read otherwise afterwards: nothing is discarded. */
  async discard(): Promise<void> {}

  /** Zero where all are. */
  async status(offset: number, lengthBytes: number): Promise<BlockStatus> {
    let [zeroBytes, dataBytes] = [lengthBytes, 0];
    for (const [, child] of this.#children()) {
      const { zero, lengthBytes: alike } = await child.chainStatus(offset, lengthBytes);
      if (zero) zeroBytes = Math.min(zeroBytes, alike);
      else dataBytes = Math.max(dataBytes, alike);
    }
    const isZero = dataBytes === 0;
    return { lengthBytes: isZero ? zeroBytes : dataBytes, allocated: true, zero: isZero, data: !isZero };
  }

  /** Errors: that of a child where too few could. */
  async flush(): Promise<void> {
    let done = 0;
    const failures = await this.#askAll('flush', 0, 0, async (child) => {
      await child.flush();
      done++;
    });
    if (done < this.#settings.threshold) throw mostFrequent(failures);
  }

  async extend(lengthBytes: number): Promise<void> {
    const release = await this.#ranges.lockExclusive(this.#lengthBytes, lengthBytes - this.#lengthBytes);
    try {
      await Promise.all(this.#children().map(([, child]) => child.extend(lengthBytes)));
      this.#lengthBytes = Math.max(this.#lengthBytes, lengthBytes);
    } finally {
      release();
    }
  }

  get hasFixedLength(): boolean {
    return this.#children().some(([, child]) => child.hasFixedLength);
  }

  allocatedBytes(): number {
    return this.#children().reduce((sum, [, child]) => sum + (child.allocatedBytes() ?? 0), 0);
  }

  info(): DriverInfo {
    return { hasNoDirtyFlag: true };
  }

  async close(): Promise<void> {}

  async #change(
    operation: 'write',
    offset: number,
    lengthBytes: number,
    change: (child: ChildIo) => Promise<void>,
    mayBeUnsupported = false,
  ): Promise<void> {
    let done = 0;
    const ask = async (child: ChildIo): Promise<void> => {
      await change(child);
      done++;
    };
    const failures = await this.#askAll(operation, offset, lengthBytes, ask, mayBeUnsupported);
    this.#lengthBytes = Math.max(this.#lengthBytes, offset + lengthBytes);
    this.#assertEnough(done, failures, offset, lengthBytes);
  }

  /** Answers who failed, which is told. Errors: unsupported, where that may be and some child says it. */
  async #askAll(
    operation: 'read' | 'write' | 'flush',
    offset: number,
    lengthBytes: number,
    ask: (child: ChildIo, role: string) => Promise<void>,
    mayBeUnsupported = false,
  ): Promise<Failure[]> {
    const failures: Failure[] = [];
    const asked = this.#children().map(([role, child]) =>
      ask(child, role).catch((error: unknown) => void failures.push({ role, error })),
    );
    await Promise.all(asked);
    const unsupported = mayBeUnsupported && failures.find(({ error }) => isUnsupported(error));
    if (unsupported) throw unsupported.error;
    for (const { role, error } of failures) this.#bad(role, operation, offset, lengthBytes, error);
    return failures;
  }

  #assertEnough(done: number, failures: readonly Failure[], offset: number, lengthBytes: number): void {
    if (done >= this.#settings.threshold) return;
    this.#context.report({ name: 'no-quorum', offset, lengthBytes });
    throw mostFrequent(failures);
  }

  #noQuorum(offset: number, lengthBytes: number): BlockError {
    this.#context.report({ name: 'no-quorum', offset, lengthBytes });
    return errnoError('EIO', undefined, { node: this.#context.nodeName, offset });
  }

  #bad(
    role: string,
    operation: 'read' | 'write' | 'flush',
    offset: number,
    lengthBytes: number,
    error?: unknown,
  ): void {
    const told = error === undefined ? {} : { error: errnoText(errnoOf(error)) };
    this.#context.report({ name: 'bad-child', role, operation, offset, lengthBytes, ...told });
  }

  /** QEMU's program ends there. */
  #mismatch(
    [first, second]: ReadonlyArray<{ bytes: Buffer }>,
    offset: number,
    lengthBytes: number,
  ): BlockError {
    const at = offset + (first?.bytes.findIndex((byte, i) => byte !== second?.bytes[i]) ?? 0);
    this.#context.tell(`quorum: offset=${offset} bytes=${lengthBytes} contents mismatch at offset ${at}`);
    return errnoError('EIO', undefined, { node: this.#context.nodeName, offset });
  }

  /** The highest number in use gives the next one: as QEMU numbers them. */
  #changes(): ChangingChildren {
    let next = this.#context.listChildren(LIST).length;
    const refuse = (text: string): never => {
      throw new BlockError('invalid', text, { node: this.#context.nodeName });
    };
    return {
      roleOfNext: ({ lengthBytes }) => {
        if (this.#settings.comparesTwo) refuse('Cannot add a child to a quorum in blkverify mode');
        if (lengthBytes !== this.#lengthBytes) throw sizesDiffer();
        return `${LIST}.${next}`;
      },
      added: () => void next++,
      checkRemoval: () => {
        const { threshold, comparesTwo } = this.#settings;
        if (this.#children().length <= threshold)
          refuse(`The number of children cannot be lower than the vote threshold ${threshold}`);
        if (comparesTwo) refuse('Cannot remove a child from a quorum in blkverify mode');
      },
      removed: (role) => {
        if (role === `${LIST}.${next - 1}`) next--;
      },
    };
  }
}

function losersOf(versions: ReadonlyArray<Version<string>>): string[] {
  return versions.flatMap(({ voters }) => voters);
}

/** The children vote on the error, too. */
function mostFrequent(failures: readonly Failure[]): unknown {
  const errnos = failures.map(({ error }) => errnoOf(error));
  const count = (errno: string): number => errnos.filter((other) => other === errno).length;
  const [most] = [...failures].sort((a, b) => count(errnoOf(b.error)) - count(errnoOf(a.error)));
  return most?.error ?? errnoError('EIO');
}

function sizesDiffer(): BlockError {
  return errnoError('EIO', 'Could not refresh total sector count');
}
