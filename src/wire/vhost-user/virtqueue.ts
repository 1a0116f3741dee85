import { broken, type VringAddresses } from './codec.js';
import { type Chain, IndirectTable } from './chain.js';
import { MAX_QUEUE_SIZE, VRING_LOG } from './constants.js';
import type { DirtyLog } from './dirty-log.js';
import type { GuestMemory } from './guest-memory.js';
import type { SharedMemory } from '../../host/sharing.js';

/**
 * The device's side of a virtqueue (virtio 1.2, 2.6 to 2.8): where it lies, and what either form of it can do. Everything that
 * the driver writes is read once and checked. src/wire/vhost-user/README.md says how loads and stores are ordered. All errors
 * are those of broken().
 */
export abstract class Virtqueue {
  readonly index: number;
  size = 0;
  addresses: VringAddresses | undefined;
  /** Where the front-end says that the ring stands; each form has its own encoding (SET_VRING_BASE). */
  protected startsAt: number | undefined;
  /** What we write of the ring is marked in it. */
  log: DirtyLog | undefined;
  protected readonly indirect = new IndirectTable();

  constructor(index: number) {
    this.index = index;
  }

  setSize(size: number): void {
    if (size === 0 || size > MAX_QUEUE_SIZE || (size & (size - 1)) !== 0) throw broken(`a queue of ${size}`);
    this.size = size;
    this.unmap();
  }

  setAddresses(addresses: VringAddresses): void {
    this.addresses = addresses;
    this.unmap();
  }

  setBase(base: number): void {
    this.startsAt = base;
  }

  /** What is known of another one that has not begun. */
  takeOver({ size, addresses, startsAt, log }: Virtqueue): void {
    Object.assign(this, { size, addresses, startsAt, log });
  }

  get logsWrites(): boolean {
    return this.addresses !== undefined && (this.addresses.flags & VRING_LOG) !== 0;
  }

  protected get places(): VringAddresses {
    const { addresses, size } = this;
    if (!addresses || size === 0) throw broken(`queue ${this.index} starts without a ring`);
    return addresses;
  }

  /** A request that is not ended is known to whoever starts the queue again. */
  abstract get keepsInflight(): boolean;

  /** Where requests under way are kept that may outlive us; undefined: nowhere. */
  abstract setInflight(memory: SharedMemory | undefined, queueSize: number): void;

  abstract get isMapped(): boolean;

  abstract map(memory: GuestMemory, hasEventIndex: boolean): void;

  /** Nothing of the memory is used any more, until map(). */
  unmap(): void {
    this.indirect.forget();
  }

  /** While it is mapped: goes on where a device before us ended. Answers heads that that one had begun, oldest first. */
  abstract start(): number[];

  /** Where it stands, for a device that comes after us. */
  abstract get base(): number;

  /** The driver has made chains available that were not taken. */
  abstract hasMore(): boolean;

  /** Takes the next chain; answers its head, or -1 where there is none. */
  abstract take(memory: GuestMemory, chain: Chain): number;

  /** Reads the chain of a head that start() has answered. */
  abstract readAgain(head: number, memory: GuestMemory, chain: Chain): void;

  /** Gives a chain back, of which so many bytes were filled. */
  abstract give(head: number, filledBytes: number): void;

  /**
   * Whether the driver is to be told of what was given since the last time; then it counts as told. `whenEmpty`: in any
   * case where nothing is left (VIRTIO_F_NOTIFY_ON_EMPTY).
   */
  abstract mustTell(whenEmpty: boolean): boolean;

  /** The driver need not tell of new chains: they are looked for. */
  abstract suppress(): void;

  /** The driver tells of the next chain. True: there is one already, of which it may not have told. */
  abstract listen(): boolean;
}
