import { BlockError } from '../../base/error.js';
import type { HostClock, HostTimer } from '../../host/host.js';
import type { ByteStream } from './byte-stream.js';
import { encodeFrame, type Frame, FrameReader, opening } from './frames.js';
import type { SectionsDigest } from './digest.js';
import {
  decodeMessage,
  encodeMessage,
  type Message,
  type MessageName,
  type MessageOf,
  type Section,
} from './messages.js';

/** How often an end that is at work says that it is. */
const SIGN_OF_LIFE_MS = 5_000;
/** How long an end waits that hears nothing at all. */
const SILENCE_MS = 30_000;

/** One connection of a move, as messages. Both ends say again and again that they are there (`wait`). */
export class MoveChannel {
  readonly stream: ByteStream;
  /** Bytes written so far. */
  sentBytes = 0;
  /** The last message in each direction, for whoever must be told how far it came. */
  lastSent: MessageName | undefined;
  lastSeen: MessageName | undefined;
  readonly #clock: HostClock;
  readonly #reader = new FrameReader();
  /** Bytes a second; 0 for no limit. */
  readonly #bandwidth: () => number;
  #paidUntilMs = 0;
  #timer: HostTimer | undefined;
  #isClosed = false;

  constructor(stream: ByteStream, clock: HostClock, bandwidth: () => number = () => 0) {
    this.stream = stream;
    this.#clock = clock;
    this.#bandwidth = bandwidth;
  }

  /** Says what comes. */
  async open(): Promise<void> {
    await this.#write(opening());
    if (!this.stream.isOneWay) this.#signOfLife();
  }

  #signOfLife(): void {
    this.#timer = this.#clock.setTimer(SIGN_OF_LIFE_MS, () => {
      // One that cannot be sent is missed by the other end.
      this.stream.write(encodeFrame(encodeMessage('wait', {}))).catch(() => undefined);
      if (!this.#isClosed) this.#signOfLife();
    });
  }

  /** Drops the connection. */
  close(): void {
    this.#isClosed = true;
    this.#timer?.cancel();
    this.stream.destroy();
  }

  /**
   * Says nothing more, and hears what comes until the other end hangs up, or so long: one that still sends would else lose
   * what was said to it last.
   */
  async farewell(timeoutMs: number): Promise<void> {
    this.#timer?.cancel();
    const late = this.#clock.setTimer(timeoutMs, () => this.stream.destroy());
    try {
      while (await this.stream.read());
    } catch {
      // The link is gone.
    } finally {
      late.cancel();
    }
  }

  /** Errors: those of the connection; timeout when the other end takes nothing for so long. */
  async send<N extends MessageName>(name: N, body: MessageOf<N>['body']): Promise<void> {
    this.lastSent = name;
    await this.#write(encodeFrame(encodeMessage(name, body)));
  }

  /** The next message. Errors: corrupt, unsupported; closed at the end of the stream; timeout when nothing comes for so long. */
  async receive(silenceMs = SILENCE_MS): Promise<Message> {
    for (;;) {
      const message = decodeMessage(await this.#frame(silenceMs));
      if (message.name === 'wait') continue;
      this.lastSeen = message.name;
      return message;
    }
  }

  /** Resolves when the other end has said what it is. Errors: as receive. */
  async greeted(silenceMs = SILENCE_MS): Promise<void> {
    const timer = this.#clock.setTimer(silenceMs, () => this.stream.destroy());
    try {
      while (!this.#reader.takeOpening()) this.#reader.push(await this.#read());
    } finally {
      timer.cancel();
    }
  }

  async #frame(silenceMs: number): Promise<Frame> {
    let isLate = false;
    const timer = this.stream.isOneWay
      ? undefined
      : this.#clock.setTimer(silenceMs, () => {
          isLate = true;
          this.stream.destroy();
        });
    try {
      for (;;) {
        const frame = this.#reader.next();
        if (frame) return frame;
        this.#reader.push(await this.#read());
      }
    } catch (error) {
      if (isLate) throw new BlockError('timeout', 'The other end does not answer', { cause: error });
      throw error;
    } finally {
      timer?.cancel();
    }
  }

  async #read(): Promise<Buffer> {
    const chunk = await this.stream.read().catch((error: unknown) => {
      // Who does not know what we say may well break off.
      if (!this.#reader.isSilent) throw error;
      return undefined;
    });
    if (chunk) return chunk;
    throw new BlockError('closed', this.#whyEnded());
  }

  #whyEnded(): string {
    if (this.#reader.isSilent)
      return "The other end has closed the connection and said nothing: no livedisk is there, or one with other 'tls-creds'";
    return this.#reader.isBetween
      ? 'The other end has closed the connection'
      : 'The migration stream ends too early';
  }

  /** One of these messages. Errors: as receive; what the other end refuses with; corrupt for another message. */
  async expect<N extends MessageName>(names: readonly N[], silenceMs?: number): Promise<MessageOf<N>> {
    const message = await this.receive(silenceMs);
    if (names.includes(message.name as N)) return message as MessageOf<N>;
    if (message.name === 'refuse') throw new RefusedByPeer(message.body.reason);
    throw new BlockError(
      'corrupt',
      `The migration stream is damaged: '${message.name}' in place of '${names.join("' or '")}'`,
    );
  }

  /** Nobody listens while much is sent: an end that has hung up since may have said why, which is told in place of `error`. */
  async refusalOr(error: unknown, silenceMs: number): Promise<unknown> {
    if (this.stream.isOneWay) return error;
    return this.expect(['wait'], silenceMs).then(
      () => error,
      (told: unknown) => (told instanceof RefusedByPeer ? told : error),
    );
  }

  /** Each goes into the digest too. */
  async sendSections(sections: Iterable<Section>, digest: SectionsDigest): Promise<void> {
    for (const section of sections) {
      digest.add(section);
      await this.send('section', section);
    }
  }

  async #write(bytes: Buffer): Promise<void> {
    const bandwidth = this.#bandwidth();
    if (bandwidth > 0) {
      const now = this.#clock.nowMs();
      const due = Math.max(this.#paidUntilMs, now);
      this.#paidUntilMs = due + (bytes.length / bandwidth) * 1000;
      if (due > now) await this.#clock.sleep(due - now);
    }
    await this.#taken(bytes);
    this.sentBytes += bytes.length;
  }

  /** Who takes nothing for so long is not there. A file, or a command, has all the time it wants. */
  async #taken(bytes: Buffer): Promise<void> {
    if (this.stream.isOneWay) return this.stream.write(bytes);
    let isLate = false;
    const timer = this.#clock.setTimer(SILENCE_MS, () => {
      isLate = true;
      this.stream.destroy();
    });
    try {
      await this.stream.write(bytes);
    } catch (error) {
      if (isLate) throw new BlockError('timeout', 'The other end does not answer', { cause: error });
      throw error;
    } finally {
      timer.cancel();
    }
  }
}

/** The other end has said that it will not have the machine, and why. */
export class RefusedByPeer extends BlockError {
  constructor(reason: string) {
    super('invalid', reason);
  }
}
