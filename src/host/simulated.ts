import { NO_TRACE_OUTPUT, Trace } from '../base/trace.js';
import { deferred } from '../base/async.js';
import { assert } from '../base/assert.js';
import type { Host, SocketAddress } from './host.js';
import type { LossMode } from './simulated-disk.js';
import { EventQueue, SimulatedClock } from './simulated-clock.js';
import { SimulatedCompute } from './simulated-compute.js';
import { absolute, SimulatedDirectory, SimulatedFiles } from './simulated-files.js';
import { type DiskSpace, type Fault, Machine, type MachineOptions } from './simulated-machine.js';
import { SimulatedNet } from './simulated-net.js';
import { SeededRandom } from './simulated-random.js';
import { SimulatedRequests } from './simulated-requests.js';

export type { LossMode } from './simulated-disk.js';
export type { DiskSpace, Fault, Operation, OperationKind } from './simulated-machine.js';
export { SeededRandom } from './simulated-random.js';

export interface SimulationOptions extends Partial<MachineOptions> {
  /** Decides everything: latencies, refusals, chunk sizes, what survives a power loss. */
  seed: number;
  /** Folders that are there at the start, besides '/'. Default: /tmp. */
  directories?: string[];
  /** Of another simulation: what its files hold. */
  disk?: SimulatedDirectory;
  /** Where its clock begins. Default 0. */
  startMs?: number;
  /** Real time without progress after which run() gives up. Default 1000. */
  stuckAfterMs?: number;
}

/** A machine that exists only in memory, its time and chance decided by one seed. */
export class Simulation {
  readonly seed: number;
  readonly #queue: EventQueue;
  readonly #random: SeededRandom;
  readonly #machine: Machine;
  readonly #directory: SimulatedDirectory;
  readonly #stuckAfterMs: number;
  #net: SimulatedNet;
  #host: Host;
  #powerLost = deferred();

  constructor(options: SimulationOptions) {
    this.seed = options.seed;
    this.#random = new SeededRandom(options.seed);
    this.#queue = new EventQueue(options.startMs);
    const { dropFlush, onOperation } = options;
    this.#machine = new Machine(this.#queue, this.#random.fork(), {
      latencyMs: options.latencyMs ?? 1,
      refuseProbability: options.refuseProbability ?? 0.2,
      ...(dropFlush && { dropFlush }),
      ...(onOperation && { onOperation }),
    });
    this.#directory = options.disk ?? new SimulatedDirectory(['/', ...(options.directories ?? ['/tmp'])]);
    this.#machine.usedBytes = () => this.usedBytes;
    this.#stuckAfterMs = options.stuckAfterMs ?? 1000;
    this.#net = new SimulatedNet(this.#machine);
    this.#host = this.#newHost();
  }

  /** The host of this boot. */
  get host(): Host {
    return this.#host;
  }

  /** Operations on files so far. */
  get operationCount(): number {
    return this.#machine.operationCount;
  }

  /** Resolves when the power goes. */
  get powerLost(): Promise<void> {
    return this.#powerLost.promise;
  }

  /** Lets virtual time pass until `body` settles. Everything that uses the host has to run inside. */
  run<T>(body: () => Promise<T>): Promise<T> {
    return this.#queue.run(body, this.#stuckAfterMs);
  }

  /** Makes matching operations fail; the answer takes the fault away again. */
  injectFault(fault: Fault): () => void {
    const { op, path } = fault;
    return this.#machine.injectFault(
      path === undefined || op === 'compute' ? fault : { ...fault, path: absolute(path) },
    );
  }

  /** Bytes that all files take. */
  get usedBytes(): number {
    let bytes = 0;
    for (const inode of this.#directory.files().values()) bytes += inode.allocatedBytes;
    return bytes;
  }

  /** The disk holds only so much from now on; undefined: no limit. */
  limitSpace(space: DiskSpace | undefined): void {
    this.#machine.space = space;
  }

  /**
   * The power goes now: handles fail with kind 'closed', sockets and timers fall silent, and of every file and
   * folder remains what was flushed plus a random part of what was not.
   */
  powerLoss(): void {
    const inFlight = this.#machine.cutPower();
    for (const inode of this.#directory.inodes()) inode.losePower(this.#random, inFlight.get(inode) ?? []);
    this.#directory.losePower(this.#random);
    this.#powerLost.resolve();
  }

  /**
   * Another machine whose disk holds what this one's would hold if the power went now; this one goes on. `seed` decides
   * what is kept where `mode` leaves that to chance.
   */
  ifPowerWent(seed: number, mode: LossMode): Simulation {
    const random = new SeededRandom(seed);
    const inFlight = this.#machine.inFlight();
    const disk = this.#directory.ifPowerWent(mode !== 'nothing', (inode) =>
      inode.ifPowerWent(random, mode, inFlight.get(inode) ?? []),
    );
    return new Simulation({ seed, disk, startMs: this.#queue.nowMs });
  }

  /** A fresh host over what is on the disk; after a powerLoss(). */
  reboot(): Host {
    this.#powerLost = deferred();
    this.#net = new SimulatedNet(this.#machine);
    this.#host = this.#newHost();
    return this.#host;
  }

  cutConnections(address?: SocketAddress): void {
    this.#net.cut(address);
  }

  setSilent(silent: boolean, address?: SocketAddress): void {
    this.#net.setSilent(silent, address);
  }

  /** Another program takes an exclusive lock on a byte of a file, or gives it back. */
  setForeignLock(path: string, byteOffset: number, held: boolean): void {
    const inode = this.#directory.get(absolute(path));
    assert(inode !== undefined && inode !== 'directory', () => `no file ${path}`);
    if (held) inode.foreignLocks.add(byteOffset);
    else inode.foreignLocks.delete(byteOffset);
  }

  /** Of all files. */
  paths(): string[] {
    return [...this.#directory.files().keys()];
  }

  /** A file's whole content as a reader sees it now; undefined when there is none. */
  contentOf(path: string): Buffer | undefined {
    const inode = this.#directory.get(absolute(path));
    if (inode === undefined || inode === 'directory') return undefined;
    const content = Buffer.alloc(inode.sizeBytes);
    inode.read(0, content);
    return content;
  }

  #newHost(): Host {
    const machine = this.#machine;
    const boot = machine.boot;
    return {
      files: new SimulatedFiles(machine, this.#directory),
      net: this.#net,
      checksShortcuts: true,
      clock: new SimulatedClock(this.#queue, () => machine.boot === boot),
      random: this.#random.fork(),
      compute: new SimulatedCompute(machine),
      trace: new Trace(NO_TRACE_OUTPUT),
      requestWatch: new SimulatedRequests(this.#random.fork()),
    };
  }
}

export function createSimulatedHost(options: SimulationOptions): Simulation {
  return new Simulation(options);
}
