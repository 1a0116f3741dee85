import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { Notifier } from '../../src/base/async.js';
import type { Host, HostSocket } from '../../src/host/host.js';
import type { HostEvent, HostSharing, SharedMemory } from '../../src/host/sharing.js';
import {
  encodeInflight,
  encodeMessage,
  encodeUint64,
  encodeVringState,
  type InflightDescription,
} from '../../src/wire/vhost-user/codec.js';
import { Feature, HeaderFlag, ProtocolFeature, Request } from '../../src/wire/vhost-user/constants.js';
import { PackedRingDriver } from './packed-ring-driver.js';
import { type Piece, RingDriver } from './ring-driver.js';

export type Driver = RingDriver | PackedRingDriver;

/** Where the guest, and where the process that is not there, has its memory. */
export const GUEST_BASE = 0x1000_0000;
export const USER_BASE = 0x7f00_0000_0000;
const MiB = 1024 * 1024;

const koffi = createRequire(import.meta.url)('koffi') as typeof import('koffi');
const libc = koffi.load(null);
const eventfd = libc.func('int eventfd(unsigned int count, int flags)') as (
  count: number,
  flags: number,
) => number;
export const dup = libc.func('int dup(int fd)') as (fd: number) => number;

/** eventfd(2). `blocks`: who reads it, or writes to it, may have to wait. */
export function newEvent({ blocks = false } = {}): number {
  return eventfd(0, blocks ? 0 : 0o4000);
}

export interface FrontEndProperties {
  host: Host;
  path: string;
  memoryBytes?: number;
  queueSize?: number;
  queueCount?: number;
  features?: bigint;
  /** Takes requests over that a device before had begun. */
  inflight?: { fd: number; description: InflightDescription };
  wantsInflight?: boolean;
  /** Memory that an earlier connection had, and its guest's drivers of the rings in it. */
  memoryFd?: number;
  drivers?: readonly Driver[];
}

interface Queue {
  driver: Driver;
  kick: HostEvent;
  kickFd: number;
}

/** A front-end of vhost-user with a guest that asks what it is told to. */
export class VhostFrontEnd {
  readonly sharing: HostSharing;
  readonly socket: HostSocket;
  readonly memoryFd: number;
  readonly memory: Buffer;
  readonly queues: Queue[] = [];
  inflight: { fd: number; description: InflightDescription } | undefined;
  isClosed = false;
  /** How often the device told of answers. */
  told = 0;
  configChanges = 0;
  readonly #shared: SharedMemory;
  readonly #ownsMemory: boolean;
  readonly #closing: Array<() => void> = [];
  readonly #changed = new Notifier();
  #received = Buffer.alloc(0);
  #next = 0;
  readonly #answers = new Map<string, number>();

  private constructor(host: Host, socket: HostSocket, memoryBytes: number, memoryFd?: number) {
    assert.ok(host.sharing);
    this.sharing = host.sharing;
    this.socket = socket;
    this.#ownsMemory = memoryFd === undefined;
    this.memoryFd = memoryFd ?? this.sharing.create('guest', memoryBytes);
    this.#shared = this.sharing.map(this.memoryFd, 0, memoryBytes);
    const view = this.#shared.view(0, memoryBytes);
    this.memory = Buffer.from(view.buffer, view.byteOffset, view.length);
    socket.start({
      onData: (chunk) => {
        this.#received = Buffer.concat([this.#received, chunk]);
        this.#changed.notify();
      },
      onClose: () => {
        this.isClosed = true;
        this.#changed.notify();
      },
    });
  }

  /** Only connected. */
  static async connect({
    host,
    path,
    memoryBytes = 16 * MiB,
    memoryFd,
  }: FrontEndProperties): Promise<VhostFrontEnd> {
    const socket = await host.net.connect({ type: 'unix', path }, { receiveFds: true });
    return new VhostFrontEnd(host, socket, memoryBytes, memoryFd);
  }

  /** With queues that run. */
  static async start(properties: FrontEndProperties): Promise<VhostFrontEnd> {
    const frontEnd = await VhostFrontEnd.connect(properties);
    await frontEnd.agree(properties);
    await frontEnd.run(properties);
    return frontEnd;
  }

  send(
    request: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: readonly number[] = [],
    flags = 0,
  ): void {
    const message = encodeMessage(request, flags, payload);
    if (fds.length === 0) this.socket.write(message);
    else assert.ok(this.socket.sendFds?.(message, fds), 'descriptors are sent');
  }

  /** The payload of the answer. */
  async ask(request: number, payload?: Uint8Array, fds?: readonly number[], flags?: number): Promise<Buffer> {
    this.send(request, payload, fds, flags);
    await this.#changed.until(() => this.isClosed || this.#received.length >= 12);
    assert.ok(this.#received.length >= 12, `message ${request} was answered`);
    const lengthBytes = this.#received.readUInt32LE(8);
    await this.#changed.until(() => this.isClosed || this.#received.length >= 12 + lengthBytes);
    assert.equal(this.#received.readUInt32LE(0), request);
    assert.equal(this.#received.readUInt32LE(4), HeaderFlag.reply + HeaderFlag.version);
    const answer = this.#received.subarray(12, 12 + lengthBytes);
    this.#received = this.#received.subarray(12 + lengthBytes);
    return answer;
  }

  async askNumber(request: number): Promise<bigint> {
    return (await this.ask(request)).readBigUInt64LE(0);
  }

  async agree({
    features = Feature.version1 | Feature.indirect,
  }: Partial<FrontEndProperties>): Promise<void> {
    const offered = await this.askNumber(Request.getFeatures);
    const protocol = await this.askNumber(Request.getProtocolFeatures);
    const wanted =
      ProtocolFeature.multiQueue |
      ProtocolFeature.config |
      ProtocolFeature.backendRequest |
      ProtocolFeature.replyAck |
      ProtocolFeature.logSharedMemory |
      ProtocolFeature.inflight;
    this.send(Request.setProtocolFeatures, encodeUint64(wanted & protocol));
    this.send(Request.setOwner);
    this.send(Request.setFeatures, encodeUint64((features | Feature.protocolFeatures) & offered));
  }

  /** Memory, rings and events. */
  async run(properties: Partial<FrontEndProperties>): Promise<void> {
    const { queueSize = 64, queueCount = 1, features = 0n, inflight, wantsInflight } = properties;
    if (inflight) this.send(Request.setInflightFd, encodeInflight(inflight.description), [inflight.fd]);
    else if (wantsInflight === true) await this.#getInflight(queueCount, queueSize);
    this.sendTable();
    let at = 0;
    for (let index = 0; index < queueCount; index++) {
      const hasEventIndex = (features & Feature.eventIndex) !== 0n;
      const Ring = (features & Feature.packedRing) !== 0n ? PackedRingDriver : RingDriver;
      const driver =
        properties.drivers?.[index] ?? new Ring(this.memory, GUEST_BASE, at, queueSize, hasEventIndex);
      if (properties.memoryFd === undefined) this.memory.fill(0, at, driver.end - GUEST_BASE);
      at = driver.end - GUEST_BASE;
      this.#next = Math.max(this.#next, driver.end);
      this.startQueue(index, driver);
    }
    // Answered when all of it is done.
    await this.askNumber(Request.getFeatures);
  }

  sendTable(): void {
    const payload = Buffer.alloc(8 + 32);
    payload.writeUInt32LE(1, 0);
    this.#region().copy(payload, 8);
    this.send(Request.setMemTable, payload, [this.memoryFd]);
  }

  #region(): Buffer {
    const region = Buffer.alloc(32);
    region.writeBigUInt64LE(BigInt(GUEST_BASE), 0);
    region.writeBigUInt64LE(BigInt(this.memory.length), 8);
    region.writeBigUInt64LE(BigInt(USER_BASE), 16);
    return region;
  }

  /** Answers what the inflight descriptor is for; its descriptor came with the answer. */
  async #getInflight(queueCount: number, queueSize: number): Promise<void> {
    const asked = encodeInflight({ lengthBytes: 0, fileOffset: 0, queueCount, queueSize });
    const answer = await this.ask(Request.getInflightFd, asked);
    const [fd] = this.socket.takeFds?.() ?? [];
    assert.ok(fd !== undefined, 'a descriptor came');
    const lengthBytes = Number(answer.readBigUInt64LE(0));
    this.inflight = { fd, description: { lengthBytes, fileOffset: 0, queueCount, queueSize } };
  }

  ringAddresses(index: number, driver: Driver, flags = 0): Buffer {
    const { descriptors, used, available } = driver.places;
    const payload = Buffer.alloc(40);
    payload.writeUInt32LE(index, 0);
    payload.writeUInt32LE(flags, 4);
    const user = (address: number): bigint => BigInt(address - GUEST_BASE + USER_BASE);
    payload.writeBigUInt64LE(user(descriptors), 8);
    payload.writeBigUInt64LE(user(used), 16);
    payload.writeBigUInt64LE(user(available), 24);
    payload.writeBigUInt64LE(BigInt(used), 32);
    return payload;
  }

  startQueue(index: number, driver: Driver, base = driver.start): void {
    this.send(Request.setVringNum, encodeVringState(index, driver.size));
    this.send(Request.setVringBase, encodeVringState(index, base));
    this.send(Request.setVringAddr, this.ringAddresses(index, driver));
    const [kickFd, callFd] = [newEvent(), newEvent()];
    const kick = this.sharing.openEvent(dup(kickFd));
    this.send(Request.setVringKick, encodeUint64(BigInt(index)), [kickFd]);
    this.send(Request.setVringCall, encodeUint64(BigInt(index)), [callFd]);
    this.sharing.close(kickFd);
    const watch = this.sharing.watch(callFd, () => {
      this.told++;
      this.collect();
    });
    this.#closing.push(
      () => watch.close(),
      () => kick.close(),
    );
    this.send(Request.setVringEnable, encodeVringState(index, 1));
    this.queues[index] = { driver, kick, kickFd };
  }

  /** Answers that are there. */
  collect(): void {
    this.queues.forEach(({ driver }, index) => {
      for (const { head, filledBytes } of driver.take()) this.#answers.set(`${index}:${head}`, filledBytes);
    });
    this.#changed.notify();
  }

  /** Guest memory that nobody else has. */
  allocate(lengthBytes: number): Piece {
    const address = this.#next;
    this.#next = Math.ceil((address + lengthBytes) / 16) * 16;
    assert.ok(this.#next <= GUEST_BASE + this.memory.length, 'the guest has memory');
    return { address, lengthBytes };
  }

  bytes({ address, lengthBytes }: Piece): Buffer {
    return this.memory.subarray(address - GUEST_BASE, address - GUEST_BASE + lengthBytes);
  }

  header(type: number, sector: number): Piece {
    const header = this.allocate(16);
    this.bytes(header).writeUInt32LE(type, 0);
    this.bytes(header).writeBigUInt64LE(BigInt(sector), 8);
    return header;
  }

  queue(index: number): Queue {
    const found = this.queues[index];
    assert.ok(found);
    return found;
  }

  /** Puts a request into a queue, and tells the device where it wants that; answers where its status will be. */
  begin(
    type: number,
    sector: number,
    { out = [], into = [], indirect = false, queue = 0 }: RequestMemory = {},
  ): { head: number; status: Piece; queue: number } {
    const status = this.allocate(1);
    this.bytes(status)[0] = 0xff;
    const { driver, kick } = this.queue(queue);
    const table = indirect ? this.allocate(16 * (out.length + into.length + 2)).address : undefined;
    const head = driver.add([this.header(type, sector), ...out], [...into, status], table);
    this.#answers.delete(`${queue}:${head}`);
    if (driver.mustKick) kick.signal();
    return { head, status, queue };
  }

  /** The status of a request that was begun, and how many bytes the device says it has filled. */
  async end(begun: {
    head: number;
    status: Piece;
    queue: number;
  }): Promise<{ status: number; filledBytes: number }> {
    const key = `${begun.queue}:${begun.head}`;
    await this.#changed.until(() => this.isClosed || this.#answers.has(key));
    const filledBytes = this.#answers.get(key);
    assert.ok(filledBytes !== undefined, 'the request was answered');
    return { status: this.bytes(begun.status)[0] ?? -1, filledBytes };
  }

  async request(type: number, sector: number, memory: RequestMemory = {}): Promise<number> {
    return (await this.end(this.begin(type, sector, memory))).status;
  }

  async write(sector: number, data: Buffer): Promise<number> {
    const piece = this.allocate(data.length);
    data.copy(this.bytes(piece));
    return this.request(1, sector, { out: [piece] });
  }

  async read(sector: number, lengthBytes: number): Promise<Buffer> {
    const piece = this.allocate(lengthBytes);
    assert.equal(await this.request(0, sector, { into: [piece] }), 0);
    return Buffer.from(this.bytes(piece));
  }

  /** Waits until the device has hung up. */
  async closed(): Promise<void> {
    await this.#changed.until(() => this.isClosed);
  }

  /** Hangs up; the memory stays. */
  hangUp(): void {
    this.socket.destroy();
    this.isClosed = true;
    for (const close of this.#closing.splice(0)) close();
  }

  close(): void {
    this.hangUp();
    this.#shared.unmap();
    if (this.inflight) this.sharing.close(this.inflight.fd);
    if (this.#ownsMemory) this.sharing.close(this.memoryFd);
  }
}

export interface RequestMemory {
  out?: readonly Piece[];
  into?: readonly Piece[];
  indirect?: boolean;
  queue?: number;
}
