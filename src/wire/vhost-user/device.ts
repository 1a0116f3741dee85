import { CancelSignal } from '../../base/cancel-signal.js';
import { BlockError } from '../../base/error.js';
import { RequestPool } from '../../base/io-request.js';
import type { Host, HostClock, SharedMemory } from '../../host/host.js';
import { CONFIG_BYTES, encodeBlockConfig, WCE_OFFSET } from './block-config.js';
import { broken, type InflightDescription } from './codec.js';
import { Feature, ProtocolFeature } from './constants.js';
import type { DirtyLog } from './dirty-log.js';
import type { GuestMemory } from './guest-memory.js';
import { InflightQueue, inflightQueueBytes } from './inflight.js';
import { Load, type QueueOwner, QueueServer } from './queue-server.js';
import type { BlockExportProperties } from './target.js';

export const PROTOCOL_FEATURES =
  ProtocolFeature.multiQueue |
  ProtocolFeature.logSharedMemory |
  ProtocolFeature.replyAck |
  ProtocolFeature.backendRequest |
  ProtocolFeature.config |
  ProtocolFeature.inflight |
  ProtocolFeature.memorySlots;

/** A block device as one peer sees it: what was agreed, its memory, and its queues. */
export class BlockDevice implements QueueOwner {
  readonly disk: BlockExportProperties;
  readonly clock: HostClock;
  readonly pool: RequestPool;
  readonly signal = new CancelSignal();
  readonly load = new Load();
  readonly queues: readonly QueueServer[];
  readonly #onFailure: (error: BlockError) => void;
  #features = 0n;
  #protocolFeatures = 0n;
  #memory: GuestMemory | undefined;
  #log: DirtyLog | undefined;
  #inflight: SharedMemory | undefined;
  isGone = false;

  constructor(disk: BlockExportProperties, host: Host, onFailure: (error: BlockError) => void) {
    this.disk = disk;
    this.clock = host.clock;
    this.pool = new RequestPool(host.requestWatch);
    this.#onFailure = onFailure;
    this.queues = Array.from({ length: disk.queueCount }, (_, index) => new QueueServer(index, this));
  }

  get offeredFeatures(): bigint {
    const { version1, indirect, eventIndex, notifyOnEmpty, logAll, protocolFeatures, ...block } = Feature;
    const ring = version1 | indirect | eventIndex | notifyOnEmpty | logAll | protocolFeatures;
    const all = Object.values(block).reduce((sum, bit) => sum | bit, ring);
    const { hasDiscard = true, hasWriteZeroes = true, hasCacheSwitch = true } = this.disk.shape ?? {};
    let missing = this.disk.writable ? Feature.readOnly : 0n;
    if (!hasDiscard) missing |= Feature.discard;
    if (!hasWriteZeroes) missing |= Feature.writeZeroes;
    // Without the switch a driver takes whoever knows flushes for one that has a cache.
    if (!hasCacheSwitch) missing |= Feature.configWce | (this.disk.target.writethrough ? Feature.flush : 0n);
    return all & ~missing;
  }

  setFeatures(features: bigint): void {
    if ((features & ~this.offeredFeatures) !== 0n) throw broken(`features 0x${features.toString(16)}`);
    const changed = features ^ this.#features;
    this.#features = features;
    // Without the protocol's features there is no message that enables a queue.
    if (!this.#has(Feature.protocolFeatures)) for (const queue of this.queues) queue.isEnabled = true;
    if (changed !== 0n) this.changed();
  }

  #has(feature: bigint): boolean {
    return (this.#features & feature) !== 0n;
  }

  setProtocolFeatures(features: bigint): void {
    if ((features & ~PROTOCOL_FEATURES) !== 0n) throw broken(`protocol features 0x${features.toString(16)}`);
    this.#protocolFeatures = features;
  }

  hasAgreed(feature: bigint): boolean {
    return (this.#protocolFeatures & feature) !== 0n;
  }

  get hasEventIndex(): boolean {
    return this.#has(Feature.eventIndex);
  }

  get tellsWhenEmpty(): boolean {
    return this.#has(Feature.notifyOnEmpty);
  }

  get memory(): GuestMemory | undefined {
    return this.#memory;
  }

  /** In place of what there was. */
  setMemory(memory: GuestMemory): void {
    const old = this.#memory;
    this.#memory = memory;
    this.changed();
    old?.unuse();
  }

  get log(): DirtyLog | undefined {
    return this.#has(Feature.logAll) ? this.#log : undefined;
  }

  get lacksLog(): boolean {
    return this.#has(Feature.logAll) && !this.#log;
  }

  setLog(log: DirtyLog): void {
    const old = this.#log;
    this.#log = log;
    this.changed();
    old?.close();
  }

  /** Errors: those of broken(). */
  queue(index: number): QueueServer {
    const queue = this.queues[index];
    if (queue) return queue;
    throw broken(`no queue ${index}`);
  }

  /** Where requests under way are kept; queues that start from here on use it. */
  setInflight(memory: SharedMemory, { queueCount, queueSize }: InflightDescription): void {
    if (this.queues.some(({ isStarted }) => isStarted)) throw broken('memory for requests while queues run');
    if (queueCount > this.queues.length || memory.lengthBytes < queueCount * inflightQueueBytes(queueSize))
      throw broken(`memory of ${memory.lengthBytes} bytes for requests of ${queueCount} queues`);
    this.#inflight?.unmap();
    this.#inflight = memory;
    this.queues.forEach(({ queue }, index) => {
      queue.inflight = index < queueCount ? new InflightQueue(memory, index, queueSize) : undefined;
    });
  }

  /** The rings are where they were, but maybe in other memory, or of another form. */
  changed(): void {
    for (const server of this.queues) {
      const { queue } = server;
      queue.log = queue.logsWrites ? this.log : undefined;
      server.changed();
    }
  }

  get config(): Buffer {
    return encodeBlockConfig({
      lengthBytes: this.disk.target.lengthBytes,
      blockSizeBytes: this.disk.blockSizeBytes,
      shape: this.disk.shape ?? {},
      queueCount: this.queues.length,
      hasWriteCache: !this.disk.target.writethrough,
    });
  }

  /** A part of the configuration, zeroes where it has no more. */
  readConfig(offset: number, lengthBytes: number): Buffer {
    const part = Buffer.alloc(lengthBytes);
    this.config.copy(part, 0, Math.min(offset, CONFIG_BYTES));
    return part;
  }

  /** The driver may only turn the write cache on and off. */
  writeConfig(offset: number, bytes: Uint8Array): void {
    if (offset !== WCE_OFFSET || bytes.length !== 1)
      throw broken('a part of the configuration is not for writing');
    this.disk.target.writethrough = bytes[0] === 0;
  }

  fail(error: BlockError): void {
    for (const queue of this.queues) queue.tellError();
    this.#onFailure(error);
  }

  /** Requests under way, also after close(). */
  get inFlight(): number {
    return this.load.requests;
  }

  idle(): Promise<void> {
    return this.load.less.until(() => this.load.requests === 0);
  }

  /** Nothing more is taken or answered. What is in flight keeps its memory until it has ended. */
  close(): void {
    if (this.isGone) return;
    this.isGone = true;
    for (const queue of this.queues) queue.close();
    this.signal.cancel();
    this.#memory?.unuse();
    this.#memory = undefined;
    this.#log?.close();
    this.#inflight?.unmap();
  }
}
