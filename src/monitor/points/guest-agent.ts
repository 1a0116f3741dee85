import { deferred, type Deferred } from '../../base/async.js';
import { BlockError, toBlockError } from '../../base/error.js';
import type { Host, HostSocket, HostTimer } from '../../host/host.js';
import type { JsonObject, JsonValue } from '../../schema/types.js';
import { isJsonObject } from '../../schema/types.js';
import { JsonStream } from '../../wire/qmp/json-parser.js';
import { formatJson } from '../../wire/qmp/json-format.js';

/** How often a thaw is tried, each on a connection of its own but the first. */
const THAW_TRIES = 3;
/** Of an earlier client's, that are waited past. */
const MOST_ANSWERS = 100;
/** For each try. */
const THAW_MS = 5000;

export interface Quiesce {
  readonly path: string;
  readonly timeoutMs: number;
  /** One who made a point so has died: what is frozen is left over from that, and nobody's. */
  readonly isLeftOver?: boolean;
}

/** A guest's file systems may be frozen still: nobody has thawed them. */
export class NotThawedError extends BlockError {}

/**
 * Runs `work` while the guest's file systems are frozen by its agent (QEMU Guest Agent Protocol), at most so long; they are
 * thawed whatever happens. Answers whether they were frozen until the work was done. Without `quiesce` it is just run.
 * Errors: busy, where they are frozen already: others rely on that; those of the agent (nothing is run then), of the work;
 * NotThawedError.
 */
export async function whileFrozen(
  host: Host,
  quiesce: Quiesce | undefined,
  work: () => Promise<unknown>,
): Promise<boolean> {
  if (!quiesce) {
    await work();
    return false;
  }
  const { path, timeoutMs } = quiesce;
  const agent = await GuestAgent.connect(host, path, timeoutMs);
  await beginThawed(agent, quiesce);
  let thawing: Promise<void> | undefined;
  const thaw = (): Promise<void> => (thawing ??= thawSurely(host, path, agent));
  const startMs = host.clock.nowMs();
  let timer: HostTimer | undefined;
  let isDone = false;
  try {
    await agent.execute('guest-fsfreeze-freeze', timeoutMs);
    const leftMs = Math.max(0, startMs + timeoutMs - host.clock.nowMs());
    timer = host.clock.setTimer(leftMs, () => void thaw().catch(() => undefined));
    await work();
    isDone = true;
    return thawing === undefined;
  } finally {
    timer?.cancel();
    await thaw().catch((cause: unknown) => {
      const { kind, message } = toBlockError(cause);
      throw new NotThawedError(kind, isDone ? `the moment was taken, but ${message}` : message, { cause });
    });
  }
}

/** Errors: busy; those of the agent, which is let go. */
async function beginThawed(agent: GuestAgent, { path, timeoutMs, isLeftOver }: Quiesce): Promise<void> {
  try {
    if ((await agent.status(timeoutMs)) !== 'frozen') return;
    if (isLeftOver) return void (await agent.execute('guest-fsfreeze-thaw', timeoutMs));
    const text = "the guest's file systems are frozen already, by another program or one that has died";
    throw new BlockError(
      'busy',
      `${text}: when it is done, or with guest-fsfreeze-thaw on ${path}, ask again`,
    );
  } catch (error) {
    agent.close();
    throw error;
  }
}

/** Over the connection that there is, else over new ones. Errors: of the last try. */
async function thawSurely(host: Host, path: string, first: GuestAgent): Promise<void> {
  let failure: unknown;
  for (let tries = 0; tries < THAW_TRIES; tries++) {
    let agent: GuestAgent | undefined = tries === 0 ? first : undefined;
    try {
      agent ??= await GuestAgent.connect(host, path, THAW_MS);
      await agent.execute('guest-fsfreeze-thaw', THAW_MS);
      return;
    } catch (error) {
      failure = error;
    } finally {
      agent?.close();
    }
  }
  const text = "the guest's file systems may be frozen still: its agent does not thaw them";
  throw new BlockError('io', `${text}; ask it once more with guest-fsfreeze-thaw on ${path}`, {
    cause: failure,
  });
}

/** A connection to the agent in a guest: JSON in lines, one command at a time. */
class GuestAgent {
  readonly #host: Host;
  readonly #socket: HostSocket;
  /** Answers that nobody has taken yet; those of an earlier client may come together with ours. */
  readonly #answers: JsonObject[] = [];
  #waiting: Deferred<JsonObject> | undefined;
  #failure: BlockError | undefined;

  private constructor(host: Host, socket: HostSocket) {
    this.#host = host;
    this.#socket = socket;
    const stream = new JsonStream(
      (value) => this.#received(value),
      // What an earlier client left unfinished.
      () => undefined,
    );
    socket.start({
      // The answer to a delimited sync begins with a byte that no JSON has.
      onData: (chunk) => stream.push(Buffer.from(chunk.filter((byte) => byte !== 0xff))),
      onClose: () => this.#fail(new BlockError('closed', "the guest agent's connection has ended")),
    });
  }

  /** Connects, and throws away what an earlier client has asked. */
  static async connect(host: Host, path: string, timeoutMs: number): Promise<GuestAgent> {
    const agent = new GuestAgent(host, await host.net.connect({ type: 'unix', path }, { timeoutMs }));
    try {
      await agent.#sync(timeoutMs);
      return agent;
    } catch (error) {
      agent.close();
      throw error;
    }
  }

  async #sync(timeoutMs: number): Promise<void> {
    const id = 1 + this.#host.random.below(2 ** 30);
    this.#socket.write(Buffer.from([0xff]));
    const isAnswer = (answer: JsonObject): boolean => Number(answer['return']) === id;
    await this.#ask('guest-sync-delimited', { id }, timeoutMs, isAnswer);
  }

  /** Errors: timeout; io, in the agent's words. */
  async execute(command: string, timeoutMs: number): Promise<JsonValue> {
    const answer = await this.#ask(command, undefined, timeoutMs, () => true);
    const error = answer['error'];
    if (error === undefined) return answer['return'] ?? null;
    const words = isJsonObject(error) && typeof error['desc'] === 'string' ? error['desc'] : 'unknown error';
    throw new BlockError('io', `guest agent: ${command}: ${words}`);
  }

  /** Undefined where the agent has no such command. Errors: timeout, closed. */
  async status(timeoutMs: number): Promise<JsonValue | undefined> {
    const { return: status } = await this.#ask('guest-fsfreeze-status', undefined, timeoutMs, () => true);
    return status;
  }

  async #ask(
    name: string,
    args: JsonObject | undefined,
    timeoutMs: number,
    isAnswer: (answer: JsonObject) => boolean,
  ): Promise<JsonObject> {
    const message: JsonObject = { execute: name, ...(args && { arguments: args }) };
    const timer = this.#host.clock.setTimer(timeoutMs, () =>
      this.#fail(new BlockError('timeout', `guest agent: ${name}: no answer within ${timeoutMs} ms`)),
    );
    try {
      if (this.#failure) throw this.#failure;
      this.#answers.length = 0;
      this.#socket.write(Buffer.from(`${formatJson(message)}\n`, 'latin1'));
      for (;;) {
        const received = await this.#next();
        if (isAnswer(received)) return received;
      }
    } finally {
      timer.cancel();
      this.#waiting = undefined;
    }
  }

  #next(): Promise<JsonObject> {
    const answer = this.#answers.shift();
    if (answer) return Promise.resolve(answer);
    if (this.#failure) return Promise.reject(this.#failure);
    this.#waiting = deferred();
    return this.#waiting.promise;
  }

  #received(value: JsonValue): void {
    if (!isJsonObject(value)) return;
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting) waiting.resolve(value);
    else if (this.#answers.length < MOST_ANSWERS) this.#answers.push(value);
  }

  #fail(error: BlockError): void {
    this.#failure ??= error;
    this.#waiting?.reject(error);
    this.#waiting = undefined;
  }

  close(): void {
    this.#socket.destroy();
  }
}
