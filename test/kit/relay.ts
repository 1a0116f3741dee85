import type { Host, HostListener, HostSocket, SocketAddress } from '../../src/host/host.js';
import type { SeededRandom } from '../../src/host/simulated.js';

export interface RelayOptions {
  /** Longest delay of a chunk in each direction (0). */
  delayMs?: number;
  /** Chances and lengths of delays. */
  random?: SeededRandom;
}

/** Where a relay ends a connection, in bytes that it has passed on towards one of the ends. */
export interface Cut {
  towards: 'client' | 'server';
  afterBytes: number;
  /**
   * `reset`: both ends hear of it at once. `stall`: nothing is passed on any more, and nobody hears of it. `half-close`:
   * that end hears that nothing more comes, and the other one that nobody listens.
   */
  how: 'reset' | 'stall' | 'half-close';
}

/** The same, where a frame of this type would begin. `how`: reset. */
export interface FrameCut extends Partial<Pick<Cut, 'how'>> {
  towards: Cut['towards'];
  type: number;
}

/** A link between a client and a server that delays what it passes on, stalls, and breaks where it is told to. */
export class Relay {
  readonly address: SocketAddress;
  /** Bytes that were passed on, of all connections. */
  readonly passed = { client: 0, server: 0 };
  readonly #host: Host;
  readonly #target: SocketAddress;
  readonly #options: RelayOptions;
  readonly #links = new Set<Link>();
  #listener: HostListener | undefined;
  #cut: Cut | undefined;
  #frame: FrameCut | undefined;
  #isDown = false;

  constructor(host: Host, address: SocketAddress, target: SocketAddress, options: RelayOptions = {}) {
    this.#host = host;
    this.address = address;
    this.#target = target;
    this.#options = options;
  }

  async open(): Promise<this> {
    this.#listener = await this.#host.net.listen(this.address, (socket) => void this.#accept(socket));
    return this;
  }

  /** The next connection that gets so far ends there, and the link is down from then on. */
  cutAt(cut: Cut | undefined): void {
    this.#cut = cut;
  }

  /** The same, where the first frame of a type would begin: each chunk is one frame. */
  cutBefore(frame: FrameCut): void {
    this.#frame = frame;
  }

  /** New connections are refused. */
  setDown(isDown: boolean): void {
    this.#isDown = isDown;
    if (isDown) for (const link of [...this.#links]) link.end();
  }

  get isDown(): boolean {
    return this.#isDown;
  }

  async close(): Promise<void> {
    for (const link of [...this.#links]) link.end();
    await this.#listener?.close();
  }

  async #accept(client: HostSocket): Promise<void> {
    if (this.#isDown) return client.destroy();
    const server = await this.#host.net.connect(this.#target).catch(() => undefined);
    if (!server) return client.destroy();
    const link: Link = new Link(this.#host, client, server, {
      delayMs: () => this.#delayMs(),
      passing: (towards, chunk) => this.#passing(link, towards, chunk),
      ended: () => this.#links.delete(link),
    });
    this.#links.add(link);
    link.start();
  }

  #delayMs(): number {
    const { delayMs = 0, random } = this.#options;
    return delayMs > 0 && random ? random.below(delayMs + 1) : 0;
  }

  /** How much of what comes is passed on. */
  #passing(link: Link, towards: 'client' | 'server', chunk: Buffer): number {
    const lengthBytes = chunk.length;
    const { passed } = this;
    if (this.#frame?.towards === towards && frameTypes(chunk).includes(this.#frame.type))
      this.#cut = { towards, afterBytes: passed[towards], how: this.#frame.how ?? 'reset' };
    const cut = this.#cut;
    const room = cut?.towards === towards ? cut.afterBytes - this.passed[towards] : Infinity;
    const most = Math.min(lengthBytes, Math.max(room, 0));
    this.passed[towards] += most;
    if (cut && most < lengthBytes) {
      this.#cut = undefined;
      this.#frame = undefined;
      this.#isDown = true;
      if (cut.how === 'stall') link.stall();
      else if (cut.how === 'half-close') link.halfClose(towards);
      else this.#host.clock.setTimer(0, () => link.end());
    }
    return most;
  }
}

/** Types of the frames in a chunk that begins with one. */
function frameTypes(chunk: Buffer): number[] {
  const types: number[] = [];
  for (let at = 0; at + 12 <= chunk.length; at += chunk.readUInt32BE(at) + 12)
    types.push(chunk.readUInt16BE(at + 4));
  return types;
}

interface LinkEvents {
  delayMs(): number;
  passing(towards: 'client' | 'server', chunk: Buffer): number;
  ended(): void;
}

/** One connection through a relay: what comes at an end goes on in order, each chunk after its delay. */
class Link {
  readonly #host: Host;
  readonly #ends: { client: HostSocket; server: HostSocket };
  readonly #events: LinkEvents;
  readonly #last: { client: Promise<void>; server: Promise<void> } = {
    client: Promise.resolve(),
    server: Promise.resolve(),
  };
  #state: 'open' | 'stalled' | 'ended' = 'open';

  constructor(host: Host, client: HostSocket, server: HostSocket, events: LinkEvents) {
    this.#host = host;
    this.#ends = { client, server };
    this.#events = events;
  }

  start(): void {
    this.#join('client', 'server');
    this.#join('server', 'client');
  }

  stall(): void {
    if (this.#state === 'open') this.#state = 'stalled';
  }

  halfClose(towards: 'client' | 'server'): void {
    this.stall();
    void this.#ends[towards].shutDown().then(() => this.end());
  }

  end(): void {
    if (this.#state === 'ended') return;
    this.#state = 'ended';
    this.#events.ended();
    this.#ends.client.destroy();
    this.#ends.server.destroy();
  }

  #join(from: 'client' | 'server', to: 'client' | 'server'): void {
    this.#ends[from].start({
      onData: (chunk) => this.#pass(to, Buffer.from(chunk)),
      onClose: () => this.#after(to, () => this.#closed()),
    });
  }

  #closed(): void {
    // Who is stalled hears nothing of the other end's end either.
    if (this.#state === 'open') this.end();
  }

  #pass(to: 'client' | 'server', chunk: Buffer): void {
    this.#after(to, () => {
      if (this.#state !== 'open') return;
      const lengthBytes = this.#events.passing(to, chunk);
      if (lengthBytes > 0) this.#ends[to].write(chunk.subarray(0, lengthBytes));
    });
  }

  #after(to: 'client' | 'server', body: () => void): void {
    const delayMs = this.#events.delayMs();
    this.#last[to] = this.#last[to].then(async () => {
      if (delayMs > 0) await this.#host.clock.sleep(delayMs);
      body();
    });
  }
}
