import { type BlockError, toBlockError } from '../../base/error.js';
import type { Host, HostSocket } from '../../host/host.js';
import type { HostSharing } from '../../host/sharing.js';
import {
  broken,
  decodeConfig,
  decodeInflight,
  decodeLog,
  decodeMemoryRegion,
  decodeMemoryTable,
  decodeUint64,
  decodeVringAddresses,
  decodeVringFd,
  decodeVringState,
  encodeConfigChange,
  encodeInflight,
  encodeReply,
  encodeUint64,
  encodeVringState,
  type MemoryRegion,
  type Message,
  MessageReader,
} from './codec.js';
import { HAS_REPLY, MAX_CONFIG_BYTES, MAX_MEMORY_SLOTS, ProtocolFeature, Request } from './constants.js';
import { BlockDevice, PROTOCOL_FEATURES } from './device.js';
import { DirtyLog } from './dirty-log.js';
import { GuestMemory, MappedRegion } from './guest-memory.js';
import { KeptMemory } from './kept-memory.js';
import { describeFrontEnd, type PassedFrontEnd } from './passing.js';
import type { BlockExportProperties } from './target.js';

/** Descriptors that came before the message that they belong to was there as a whole. */
const MAX_EARLY_FDS = 32;

export interface VhostConnectionOptions {
  readonly host: Host;
  readonly sharing: HostSharing;
  readonly socket: HostSocket;
  readonly disk: BlockExportProperties;
  /** The peer broke the protocol, in words. */
  readonly onBroken: (text: string) => void;
  /** The socket is closed; requests may still be in flight (see idle). */
  readonly onClose: () => void;
}

/** One front-end: its messages, one after the other, and the device that they set up. */
export class VhostConnection {
  readonly #options: VhostConnectionOptions;
  readonly #device: BlockDevice;
  readonly #reader = new MessageReader();
  /** Received, oldest first; no message has taken them yet. */
  #fds: number[] = [];
  /** Our own requests go there. */
  #channel: HostSocket | undefined;
  #isWorking = false;
  #isFrozen = false;
  /** So many messages are not answered: another process has. */
  #unanswered = 0;
  #isClosed = false;

  constructor(options: VhostConnectionOptions) {
    this.#options = options;
    this.#device = new BlockDevice(options.disk, options.host, (error) => this.#fail(error));
    options.socket.start({
      onData: (chunk) => {
        this.#fds.push(...(options.socket.takeFds?.() ?? []));
        this.#reader.push(chunk);
        this.#proceed();
      },
      onClose: () => this.close(),
    });
  }

  /** What it has said to another process counts. */
  goOnWith({ messages, answered, fds }: PassedFrontEnd): void {
    this.#unanswered = answered;
    this.#fds.push(...fds);
    this.#reader.push(messages);
    this.#proceed();
  }

  /** Looks at nothing more of what comes, from the front-end or its guest, until thaw(). */
  freeze(): void {
    this.#isFrozen = true;
    this.#options.socket.pause();
    this.#device.freeze();
  }

  thaw(): void {
    if (!this.#isFrozen) return;
    this.#isFrozen = false;
    if (this.#isClosed) return;
    this.#device.thaw();
    if (this.#isWorking || this.#isClosed) return;
    this.#options.socket.resume();
    this.#proceed();
  }

  /** Frozen, with all that was asked answered and taken; or closed. */
  get isQuiet(): boolean {
    if (this.inFlight > 0) return false;
    if (this.#isClosed) return true;
    const isTaken = this.#options.socket.queuedBytes === 0 && (this.#channel?.queuedBytes ?? 0) === 0;
    return this.#isFrozen && !this.#isWorking && isTaken;
  }

  /** The front-end for another process, and the descriptor of its socket. Undefined: it is gone. */
  passed(): { frontEnd: PassedFrontEnd; fd: number } | undefined {
    const fd = this.#options.socket.descriptor?.();
    if (fd === undefined || this.#isClosed) return undefined;
    this.#fds.push(...(this.#options.socket.takeFds?.() ?? []));
    const unread = { messages: this.#reader.unread, fds: this.#fds };
    return { frontEnd: describeFrontEnd(this.#device, this.#channel?.descriptor?.(), unread), fd };
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Requests that the disk is working on, also after the connection is closed. */
  get inFlight(): number {
    return this.#device.inFlight;
  }

  /** Resolves when none is in flight. */
  idle(): Promise<void> {
    return this.#device.idle();
  }

  isPeerGone(): boolean {
    return this.#options.socket.isPeerGone();
  }

  /** The disk has another size. */
  configChanged(): void {
    // One that was not read says the same.
    if (this.#channel?.queuedBytes === 0 && this.#device.hasAgreed(ProtocolFeature.config))
      this.#channel.write(encodeConfigChange());
  }

  /** Drops the connection now. */
  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#options.socket.destroy();
    this.#channel?.destroy();
    this.#device.close();
    this.#closeFds();
    this.#options.onClose();
  }

  #closeFds(): void {
    this.#fds.push(...(this.#options.socket.takeFds?.() ?? []));
    for (const fd of this.#fds.splice(0)) this.#options.sharing.close(fd);
  }

  #fail(error: BlockError): void {
    if (this.#isClosed) return;
    this.#options.onBroken(error.message);
    this.close();
  }

  /** Messages that are there, as long as none has to wait. */
  #proceed(): void {
    if (this.#isWorking || this.#isFrozen) return this.#options.socket.pause();
    try {
      while (!this.#isClosed) {
        const message = this.#reader.take();
        if (!message) return this.#checkFds();
        const work = this.#handle(message);
        if (work) return this.#wait(work, message);
        this.#handled(message);
      }
    } catch (error) {
      this.#fail(toBlockError(error));
    }
  }

  /** Whatever came belongs to a message that is there. */
  #checkFds(): void {
    const most = this.#reader.hasPart ? MAX_EARLY_FDS : 0;
    if (this.#fds.length > most) throw broken('descriptors that belong to no message');
  }

  #wait(work: Promise<void>, message: Message): void {
    this.#isWorking = true;
    void work.then(
      () => {
        this.#isWorking = false;
        if (this.#isClosed) return;
        this.#handled(message);
        this.#options.socket.resume();
        this.#proceed();
      },
      (error: unknown) => this.#fail(toBlockError(error)),
    );
  }

  /** Who asked for it is told, unless the request has an answer of its own. */
  #handled({ request, needsReply }: Message): void {
    if (this.#unanswered > 0) return void this.#unanswered--;
    if (!needsReply || !this.#device.hasAgreed(ProtocolFeature.replyAck) || HAS_REPLY.has(request)) return;
    this.#reply(request, encodeUint64(0n));
  }

  #reply(request: number, payload: Uint8Array): void {
    if (this.#unanswered === 0) this.#options.socket.write(encodeReply(request, payload));
  }

  #takeFd(): number {
    const fd = this.#fds.shift();
    if (fd === undefined) throw broken('a descriptor is missing');
    return fd;
  }

  /** A promise where it has to wait. Errors: those of broken(), and of the host. */
  #handle(message: Message): Promise<void> | undefined {
    const device = this.#device;
    const { request } = message;
    switch (request) {
      case Request.getFeatures:
        return void this.#reply(request, encodeUint64(device.offeredFeatures));
      case Request.setFeatures:
        return void device.setFeatures(decodeUint64(message));
      case Request.getProtocolFeatures:
        return void this.#reply(request, encodeUint64(PROTOCOL_FEATURES));
      case Request.setProtocolFeatures:
        return void device.setProtocolFeatures(decodeUint64(message));
      case Request.setOwner:
      // What it once was nobody agrees upon: the protocol advises to do nothing.
      case Request.resetOwner:
        return undefined;
      case Request.getQueueNum:
        return void this.#reply(request, encodeUint64(BigInt(device.queues.length)));
      case Request.getConfig:
        return void this.#getConfig(message);
      case Request.setConfig: {
        const { offset, lengthBytes, bytes } = decodeConfig(message);
        return void device.writeConfig(offset, bytes.subarray(0, lengthBytes));
      }
      case Request.setBackendReqFd:
        return this.#openChannel(this.#takeFd());
      default:
        return this.#handleMemory(message);
    }
  }

  #handleMemory(message: Message): Promise<void> | undefined {
    const device = this.#device;
    const { request } = message;
    switch (request) {
      case Request.setMemTable:
        return void this.#setTable(decodeMemoryTable(message));
      case Request.getMaxMemSlots:
        return void this.#reply(request, encodeUint64(BigInt(MAX_MEMORY_SLOTS)));
      case Request.addMemReg:
        return void this.#addRegion(decodeMemoryRegion(message));
      case Request.remMemReg:
        return void this.#removeRegion(decodeMemoryRegion(message));
      case Request.setLogBase:
        return void this.#setLog(message);
      case Request.setLogFd:
        // Told of each mark, a peer would be woken as often; it looks by itself.
        return void this.#options.sharing.close(this.#takeFd());
      case Request.getInflightFd:
        return void this.#getInflight(message);
      case Request.setInflightFd: {
        const description = decodeInflight(message);
        const { lengthBytes, fileOffset } = description;
        return void device.setInflight(this.#map(fileOffset, lengthBytes), description);
      }
      default:
        return this.#handleVring(message);
    }
  }

  #handleVring(message: Message): Promise<void> | undefined {
    const { request } = message;
    switch (request) {
      case Request.setVringNum: {
        const { index, value } = decodeVringState(message);
        return void this.#stopped(index).setSize(value);
      }
      case Request.setVringBase: {
        const { index, value } = decodeVringState(message);
        return void this.#stopped(index).setBase(value);
      }
      case Request.setVringAddr: {
        const addresses = decodeVringAddresses(message);
        this.#device.queue(addresses.index).queue.setAddresses(addresses);
        return void this.#device.changed();
      }
      case Request.getVringBase:
        return this.#stop(message);
      case Request.setVringEnable: {
        const { index, value } = decodeVringState(message);
        const server = this.#device.queue(index);
        server.isEnabled = value !== 0;
        return void server.look();
      }
      case Request.setVringKick:
      case Request.setVringCall:
      case Request.setVringErr:
        return void this.#setVringFd(message);
      default:
        throw broken(`unknown message ${request}`);
    }
  }

  /** A queue that does not run. */
  #stopped(index: number): BlockDevice['queues'][number]['queue'] {
    const server = this.#device.queue(index);
    if (server.isStarted) throw broken(`queue ${index} is running`);
    return server.queue;
  }

  async #stop(message: Message): Promise<void> {
    const { index } = decodeVringState(message);
    const server = this.#device.queue(index);
    await server.stop();
    if (!this.#isClosed) this.#reply(message.request, encodeVringState(index, server.queue.base));
  }

  #setVringFd(message: Message): void {
    const { index, hasFd } = decodeVringFd(message);
    const server = this.#device.queue(index);
    const { sharing } = this.#options;
    if (message.request === Request.setVringKick) {
      if (!hasFd) throw broken('queues cannot be polled');
      const fd = this.#takeFd();
      return server.setKick(this.#owning(fd, () => sharing.watch(fd, () => server.look())));
    }
    const fd = hasFd ? this.#takeFd() : undefined;
    const event = fd === undefined ? undefined : this.#owning(fd, () => sharing.openEvent(fd));
    if (message.request === Request.setVringCall) server.setCall(event);
    else server.setError(event);
  }

  /** What fails to take a descriptor over leaves it to us. */
  #owning<T>(fd: number, take: () => T): T {
    try {
      return take();
    } catch (error) {
      this.#options.sharing.close(fd);
      throw error;
    }
  }

  /** Memory whose descriptor came. */
  #map(fileOffset: number, lengthBytes: number): KeptMemory {
    const fd = this.#takeFd();
    return this.#owning(fd, () => new KeptMemory(this.#options.sharing, fd, fileOffset, lengthBytes));
  }

  #mapRegion(region: MemoryRegion): MappedRegion {
    return new MappedRegion(region, this.#map(region.fileOffset, region.lengthBytes));
  }

  #setTable(regions: readonly MemoryRegion[]): void {
    const mapped: MappedRegion[] = [];
    try {
      for (const region of regions) mapped.push(this.#mapRegion(region));
      this.#useRegions(mapped);
    } catch (error) {
      for (const region of mapped) region.discard();
      throw error;
    }
  }

  #addRegion(region: MemoryRegion): void {
    const regions = this.#device.memory?.regions ?? [];
    if (regions.length >= MAX_MEMORY_SLOTS) throw broken('too many regions of memory');
    const mapped = this.#mapRegion(region);
    try {
      this.#useRegions([...regions, mapped]);
    } catch (error) {
      mapped.discard();
      throw error;
    }
  }

  #removeRegion({ guestAddress, lengthBytes, userAddress }: MemoryRegion): void {
    // Some send its descriptor along.
    if (this.#fds.length > 0 && !this.#reader.hasPart) this.#options.sharing.close(this.#takeFd());
    const regions = this.#device.memory?.regions ?? [];
    const rest = regions.filter(
      ({ region }) =>
        region.guestAddress !== guestAddress ||
        region.lengthBytes !== lengthBytes ||
        region.userAddress !== userAddress,
    );
    if (rest.length === regions.length) throw broken('no such region of memory');
    this.#useRegions(rest);
  }

  #useRegions(regions: readonly MappedRegion[]): void {
    this.#device.setMemory(new GuestMemory(regions));
  }

  #setLog(message: Message): void {
    const { lengthBytes, fileOffset } = decodeLog(message);
    this.#device.setLog(new DirtyLog(this.#map(fileOffset, lengthBytes), fileOffset));
    this.#reply(message.request, encodeUint64(0n));
  }

  #getInflight(message: Message): void {
    const { queueCount, queueSize } = decodeInflight(message);
    const { sharing } = this.#options;
    if (queueCount === 0 || queueCount > this.#device.queues.length || queueSize === 0)
      throw broken(`memory for requests of ${queueCount} queues of ${queueSize}`);
    const lengthBytes = queueCount * this.#device.inflightBytes(queueSize);
    const fd = sharing.create('vhost-inflight', lengthBytes);
    const description = { lengthBytes, fileOffset: 0, queueCount, queueSize };
    const memory = this.#owning(fd, () => new KeptMemory(sharing, fd, 0, lengthBytes));
    this.#device.setInflight(memory, description);
    const reply = encodeReply(message.request, encodeInflight(description));
    if (this.#options.socket.sendFds?.(reply, [fd]) !== true) throw broken('the peer takes no descriptor');
  }

  #getConfig(message: Message): void {
    const { offset, lengthBytes, bytes } = decodeConfig(message);
    const isThere = lengthBytes <= MAX_CONFIG_BYTES && bytes.length >= lengthBytes;
    if (!isThere) return this.#reply(message.request, new Uint8Array(0));
    const payload = Buffer.from(message.payload.subarray(0, 12 + lengthBytes));
    this.#device.readConfig(offset, lengthBytes).copy(payload, 12);
    this.#reply(message.request, payload);
  }

  async #openChannel(fd: number): Promise<void> {
    let channel: HostSocket;
    try {
      channel = await this.#options.host.net.connect({ type: 'fd', fd });
    } catch (error) {
      this.#options.sharing.close(fd);
      throw error;
    }
    this.#channel?.destroy();
    this.#channel = undefined;
    if (this.#isClosed) return channel.destroy();
    this.#channel = channel;
    // Answers are not asked for.
    channel.start({ onData: () => undefined, onClose: () => channel.destroy() });
  }
}
