import { BlockError } from '../../base/error.js';
import { RequestPool } from '../../base/io-request.js';
import type { Host, HostClock } from '../../host/host.js';
import { CONFIG_BYTES, encodeBlockConfig, WCE_OFFSET } from './block-config.js';
import { broken, type InflightDescription } from './codec.js';
import { Feature, ProtocolFeature } from './constants.js';
import type { DirtyLog } from './dirty-log.js';
import type { GuestMemory } from './guest-memory.js';
import { inflightQueueBytes } from './inflight.js';
import type { PeerMemory } from './kept-memory.js';
import { packedInflightBytes } from './packed-inflight.js';
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

/** Memory in which requests under way are kept. */
interface Inflight {
  readonly memory: PeerMemory;
  readonly description: InflightDescription;
}

/** A block device as one peer sees it: what was agreed, its memory, and its queues. */
export class BlockDevice implements QueueOwner {
  readonly disk: BlockExportProperties;
  readonly clock: HostClock;
  readonly pool: RequestPool;
  readonly load = new Load();
  readonly queues: readonly QueueServer[];
  readonly #onFailure: (error: BlockError) => void;
  #features = 0n;
  #protocolFeatures = 0n;
  #memory: GuestMemory | undefined;
  /** Let go of memory and logs in whose place others are, once no queue uses them. */
  readonly #former: Array<() => void> = [];
  #log: DirtyLog | undefined;
  #inflight: Inflight | undefined;
  isGone = false;
  isFrozen = false;

  constructor(disk: BlockExportProperties, host: Host, onFailure: (error: BlockError) => void) {
    this.disk = disk;
    this.clock = host.clock;
    this.pool = new RequestPool(host.requestWatch);
    this.#onFailure = onFailure;
    this.queues = Array.from({ length: disk.queueCount }, (_, index) => new QueueServer(index, this));
  }

  get offeredFeatures(): bigint {
    const { version1, indirect, packedRing, eventIndex, notifyOnEmpty, logAll, protocolFeatures, ...block } =
      Feature;
    const ring = version1 | packedRing | indirect | eventIndex | notifyOnEmpty | logAll | protocolFeatures;
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
    for (const queue of this.queues) queue.setPacked((features & Feature.packedRing) !== 0n);
    this.#features = features;
    if ((changed & Feature.packedRing) !== 0n && this.#inflight) this.#placeInflight(this.#inflight);
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

  get features(): bigint {
    return this.#features;
  }

  get protocolFeatures(): bigint {
    return this.#protocolFeatures;
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

  /** In place of what there was. Errors: those of broken(), and then the connection ends. */
  setMemory(memory: GuestMemory): void {
    const old = this.#memory;
    this.#memory = memory;
    this.#changedFrom(() => old?.unuse());
  }

  get log(): DirtyLog | undefined {
    return this.#has(Feature.logAll) ? this.#log : undefined;
  }

  /** Whether or not it is agreed that anything is. */
  get loggedIn(): DirtyLog | undefined {
    return this.#log;
  }

  get lacksLog(): boolean {
    return this.#has(Feature.logAll) && !this.#log;
  }

  setLog(log: DirtyLog): void {
    const old = this.#log;
    this.#log = log;
    this.#changedFrom(() => old?.close());
  }

  /** Where it fails some queues are in what there was still, until they are closed. */
  #changedFrom(release: () => void): void {
    this.#former.push(release);
    this.changed();
    this.#releaseFormer();
  }

  #releaseFormer(): void {
    for (const release of this.#former.splice(0)) release();
  }

  /** Errors: those of broken(). */
  queue(index: number): QueueServer {
    const queue = this.queues[index];
    if (queue) return queue;
    throw broken(`no queue ${index}`);
  }

  /** What one queue needs to keep its requests, in the form that is agreed. */
  inflightBytes(queueSize: number): number {
    return this.#has(Feature.packedRing) ? packedInflightBytes(queueSize) : inflightQueueBytes(queueSize);
  }

  /** Takes memory over where requests under way are kept; queues that start from here on use it. */
  setInflight(memory: PeerMemory, description: InflightDescription): void {
    const inflight = { memory, description };
    try {
      if (this.queues.some(({ isStarted }) => isStarted))
        throw broken('memory for requests while queues run');
      this.#placeInflight(inflight);
    } catch (error) {
      memory.unmap();
      throw error;
    }
    this.#inflight?.memory.unmap();
    this.#inflight = inflight;
  }

  get inflight(): Inflight | undefined {
    return this.#inflight;
  }

  #placeInflight({ memory, description }: Inflight): void {
    const { queueCount, queueSize } = description;
    if (queueCount > this.queues.length || memory.lengthBytes < queueCount * this.inflightBytes(queueSize))
      throw broken(`memory of ${memory.lengthBytes} bytes for requests of ${queueCount} queues`);
    this.queues.forEach(({ queue }, index) => {
      queue.setInflight(index < queueCount ? memory : undefined, queueSize);
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

  /** Nothing more is taken, nor heard of, until thaw(). */
  freeze(): void {
    this.isFrozen = true;
    for (const { events } of this.queues) events.kick?.pause();
  }

  thaw(): void {
    this.isFrozen = false;
    for (const queue of this.queues) {
      queue.events.kick?.resume();
      queue.look();
    }
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
    this.#releaseFormer();
    this.#memory?.unuse();
    this.#memory = undefined;
    this.#log?.close();
    this.#inflight?.memory.unmap();
  }
}
