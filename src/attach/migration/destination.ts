import { assert } from '../../base/assert.js';
import { AsyncMutex, Notifier } from '../../base/async.js';
import { BlockError, toBlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { GraphKeeper } from '../../block/graph.js';
import type { SocketAddress } from '../../host/host.js';
import type { MigrationInfo, MigrationStatus, MoveInfo } from '../../schema/migration.js';
import type { ByteStream } from '../../wire/migration/byte-stream.js';
import { MoveChannel, RefusedByPeer } from '../../wire/migration/channel.js';
import { SectionsDigest, sha256Hex } from '../../wire/migration/digest.js';
import type { MessageOf } from '../../wire/migration/messages.js';
import type { RunStatus } from '../run-state.js';
import { ArrivingState, type MachineState, MEMORY_SECTION } from './machine-state.js';
import { LAST_WORD_MS, type MoveSettings } from './settings.js';

/** Where sources connect. */
export interface Door {
  readonly address: SocketAddress | undefined;
  /** One source, and no other: the next try names another door. */
  readonly isOnce: boolean;
  /** How connections there are secured, if they are. */
  readonly tls?: DoorTls;
  close(): Promise<void>;
}

/** Ids of objects. A type alias: it is JSON. */
export type DoorTls = { credentials: string; authz?: string };

/** What another process needs to answer, in the place of this one, the source from which the machine has come. */
export type PassedArrival = {
  /** The move. */
  session: string;
  door?: PassedDoor;
};

/** Without an address nobody can come there any more. */
export type PassedDoor = { isOnce: boolean; address?: SocketAddress; tls?: DoorTls };

/**
 * One move to here. `coming`: nothing has changed yet. `taken`: all of it is here, and the images are, or were, open; the
 * source's word is missing. `owned`: the machine is here. `released`: it never will be.
 */
interface Session {
  readonly id: string;
  /** SHA-256 of the source's word, in hex. */
  readonly word: string;
  /** What gives the machine back to the source. */
  readonly backWord: string;
  readonly state: ArrivingState;
  phase: 'coming' | 'taken' | 'owned' | 'released';
  /**
   * In `taken`: the source has said its word, or it was decided by hand, and a restart may find the machine here: the source
   * may not be told anything but that it is.
   */
  isHeard: boolean;
}

/** What a machine that comes becomes, which may not be what is wanted of it. */
interface Arrival {
  readonly wanted: RunStatus;
  readonly status: RunStatus;
}

const WORD_BYTES = 16;

/** The destination of moves: docs/MIGRATION.md says which message means what, and who has the machine when. */
export class DestinationMove {
  readonly #settings: MoveSettings;
  readonly #machine: MachineState;
  #status: MigrationStatus = 'none';
  #error: string | undefined;
  #door: Door | undefined;
  #isDoorClosed = false;
  #session: Session | undefined;
  /** The connection that a session is on. */
  #channel: MoveChannel | undefined;
  readonly #channels = new Set<MoveChannel>();
  readonly #idle = new Notifier();
  readonly #answered = new Notifier();
  #isClosed = false;
  #isEnding = false;
  /** One after the other: the machine is here, by a word that comes or by hand, or what has come of it is let go. */
  readonly #becoming = new AsyncMutex();
  /** What the machine will be once that is kept. */
  #arrivesAs: RunStatus | undefined;

  constructor(settings: MoveSettings, machine: MachineState) {
    this.#settings = settings;
    this.#machine = machine;
  }

  get isStarted(): boolean {
    return this.#door !== undefined;
  }

  /** While what is to be kept is described. */
  get arrivesAs(): RunStatus | undefined {
    return this.#arrivesAs;
  }

  info(): MigrationInfo {
    const address = this.#door?.address;
    const waits = this.#status === 'setup' || this.#status === 'none';
    return {
      ...(!waits && { status: this.#status }),
      ...(waits && address && { 'socket-address': [shown(address)] }),
      ...(this.#error !== undefined && { 'error-desc': this.#error }),
    };
  }

  moveInfo(): MoveInfo {
    const session = this.#session;
    const isUnsure = session?.phase === 'taken' && this.#channel === undefined;
    const owner = session?.phase === 'owned' ? 'here' : isUnsure ? 'unknown' : 'there';
    return {
      role: this.#status === 'none' ? 'none' : 'destination',
      owner,
      ...(session && { session: session.id }),
      ...(this.#channel?.lastSent !== undefined && { 'last-sent': this.#channel.lastSent }),
      ...(this.#channel?.lastSeen !== undefined && { 'last-seen': this.#channel.lastSeen }),
      ...(isUnsure && { reason: `${whyUnsure(session)} (${this.#error})` }),
    };
  }

  /** Waits for a source from here on. `open` calls back for each connection. Errors: those of `open`. */
  async listen(open: (take: (stream: ByteStream | undefined) => void) => Promise<Door>): Promise<void> {
    this.#set('setup', true);
    try {
      this.#door = await open((stream) => (stream ? void this.#serve(stream) : this.#leaveDoor()));
    } catch (error) {
      this.#status = 'none';
      throw error;
    }
  }

  async #serve(stream: ByteStream): Promise<void> {
    const channel = new MoveChannel(stream, this.#settings.host.clock);
    this.#channels.add(channel);
    try {
      await this.#greet(channel);
    } catch (error) {
      const isTold = await this.#refuse(channel, error);
      this.#leave(channel);
      this.#leaveDoor();
      // Who is no livedisk takes its bytes for welcome as long as somebody reads them.
      if (isTold && channel.lastSeen !== undefined) await channel.farewell(LAST_WORD_MS);
    } finally {
      channel.close();
      this.#channels.delete(channel);
      this.#leave(channel);
    }
  }

  /** The connection has no part in a move any more. */
  #leave(channel: MoveChannel): void {
    if (this.#channel === channel) this.#channel = undefined;
    this.#idle.notify();
  }

  #leaveDoor(): void {
    if (this.#door?.isOnce && this.#session?.phase !== 'owned') this.#door = undefined;
  }

  /** Why nothing comes of a connection. What is in doubt stays so. Answers whether the source is told. */
  async #refuse(channel: MoveChannel, error: unknown): Promise<boolean> {
    const reason = toBlockError(error).message;
    const session = this.#session;
    const { isOneWay } = channel.stream;
    let mayTell = !isOneWay;
    if (this.#channel === channel && session) {
      // Its word will never be said.
      const isOver = error instanceof RefusedByPeer || isOneWay;
      await this.#becoming.run(() => this.#lose(session, reason, isOver));
      // It would take the machine back, which a restart may find here, too, after a write that failed. It asks again.
      if (session.isHeard || session.phase === 'owned') mayTell = false;
    }
    // Somebody who connects and says nothing has no part in this, and one who comes too late none in what goes on.
    else if (this.#channel || session?.phase === 'taken' || session?.phase === 'owned')
      this.#settings.warn(reason);
    else if (channel.lastSeen !== undefined || (error instanceof BlockError && error.kind !== 'closed'))
      this.#tell(reason);
    if (mayTell) await channel.send('refuse', { reason }).catch(() => undefined);
    return mayTell;
  }

  async #greet(channel: MoveChannel): Promise<void> {
    if (!channel.stream.isOneWay) await channel.open();
    const { body: hello } = await channel.expect(['hello']);
    if (hello.again === true) return this.#answerAgain(channel, hello);
    await this.#becoming.run(async () => this.#forget(hello.before));
    if (hello.rehearsal === true) return this.#rehearse(channel, hello);
    this.#assertFree();
    this.#checkIdentity(hello.machine);
    this.#session = {
      id: hello.session,
      word: hello.word,
      backWord: this.#settings.host.random.bytes(WORD_BYTES).toString('hex'),
      state: this.#newState(),
      phase: 'coming',
      isHeard: false,
    };
    this.#channel = channel;
    this.#error = undefined;
    this.#set('active');
    await this.#receive(channel, this.#session);
  }

  /** A move that is over for its source. */
  #forget(id: string | undefined): void {
    const last = this.#session;
    if (last?.phase !== 'taken' || this.#channel || last.id !== id) return;
    last.phase = 'released';
    last.state.remove();
  }

  #newState(): ArrivingState {
    const { capabilities, parameters } = this.#settings;
    const mapping = capabilities.has('dirty-bitmaps') ? parameters.values['block-bitmap-mapping'] : undefined;
    return new ArrivingState(this.#machine.parts, mapping);
  }

  /** Says whether a move from there would be taken. Of this one nothing changes here, and nobody is told. */
  async #rehearse(channel: MoveChannel, { machine }: MessageOf<'hello'>['body']): Promise<void> {
    try {
      this.#assertFree();
      this.#checkIdentity(machine);
      await channel.send('welcome', {});
      const state = this.#newState();
      for (;;) {
        const { name, body } = await channel.expect(['section', 'described']);
        if (name === 'described') break;
        if (body.name === MEMORY_SECTION)
          throw new BlockError('corrupt', 'Memory does not come in a rehearsal');
        await state.take(body);
      }
      await channel.send('accepted', {});
      await channel.expect(['bye']);
    } catch (error) {
      await channel.send('refuse', { reason: toBlockError(error).message }).catch(() => undefined);
      await channel.farewell(LAST_WORD_MS);
    }
  }

  /** Errors: busy. */
  #assertFree(): void {
    this.#assertGoesOn();
    if (this.#channel) throw new BlockError('busy', 'Another source is sending a machine to here');
    if (this.#session?.phase === 'taken')
      throw new BlockError('busy', 'Another machine has come to here, whose source has not let go of it yet');
    if (this.#session?.phase === 'owned') throw new BlockError('busy', 'Another machine has come to here');
  }

  /** Errors: busy where a machine that came would end with the process, and nobody would have it. */
  #assertGoesOn(): void {
    if (this.#isEnding)
      throw new BlockError('busy', 'The destination has been told to end: no machine comes');
  }

  #checkIdentity({ type, uuid }: MessageOf<'hello'>['body']['machine']): void {
    const { identity } = this.#machine;
    if (type !== identity.type)
      throw new BlockError('invalid', `Machine type received is '${type}' and local is '${identity.type}'`);
    if (!this.#settings.capabilities.has('validate-uuid') || uuid === identity.uuid) return;
    throw new BlockError(
      'invalid',
      `UUID received is ${uuid ?? 'none'} and local is ${identity.uuid ?? 'none'}`,
    );
  }

  async #receive(channel: MoveChannel, session: Session): Promise<void> {
    const isOneWay = channel.stream.isOneWay;
    if (!isOneWay) await channel.send('welcome', {});
    await this.#takeSections(channel, session);
    if (!isOneWay) await channel.send('ready', { word: sha256Hex(Buffer.from(session.backWord, 'hex')) });
    await channel.expect(['give']);
    await this.#open(session);
    session.phase = 'taken';
    if (!isOneWay) await channel.send('taken', {});
    const { body } = await channel.expect(['go'], LAST_WORD_MS);
    await this.#own(session, body.word);
    if (isOneWay) return this.#closeDoor();
    await this.#tellOwned(channel);
  }

  /** Until the end of the state, which is whole then, and fits this machine. */
  async #takeSections(channel: MoveChannel, session: Session): Promise<void> {
    const digest = new SectionsDigest();
    for (;;) {
      const { name, body } = await channel.expect(['section', 'described', 'end']);
      if (name === 'section') {
        digest.add(body);
        await session.state.take(body);
      } else if (name === 'described') {
        if (!channel.stream.isOneWay) await channel.send('accepted', {});
      } else {
        const { sections, sha256 } = digest.end;
        if (body.sections !== sections || body.sha256 !== sha256)
          throw new BlockError('corrupt', 'The migration stream is damaged: its checksum is wrong');
        session.state.assertWhole();
        return session.state.assertMemoryWhole();
      }
    }
  }

  /** The source has let go of the images: whether they can be had here, and are what was sent, is known before it lets go of all. */
  async #open({ state }: Session): Promise<void> {
    state.place();
    if (this.#settings.capabilities.has('late-block-activate')) return;
    await this.#machine.activate();
    state.check();
  }

  /** Something went wrong before the source's word came; `isOver`: it never will. */
  async #lose(session: Session, reason: string, isOver: boolean): Promise<void> {
    if (session.phase === 'owned') return;
    if (isOver && session.phase === 'taken') session.phase = 'released';
    // The images were the source's until now, and may be again; those that somebody here writes were ours all the time.
    if (session.phase !== 'taken') session.state.remove();
    if (this.#machine.parts.runState.status === 'inmigrate') await this.#machine.giveUp();
    this.#error = reason;
    if (session.phase === 'taken') {
      this.#channel = undefined;
      this.#settings.warn(this.moveInfo().reason ?? reason);
      this.#settings.emit('X_MOVE', this.moveInfo());
    } else {
      if (session.phase === 'coming') session.phase = 'released';
      this.#tell(reason);
    }
  }

  #tell(reason: string): void {
    this.#error = reason;
    this.#settings.warn(reason);
    this.#settings.warn('load of migration failed');
    if (this.#status === 'active') this.#set('failed');
  }

  /** The machine is here from now on, and runs if it ran there. Errors: permission for a wrong word; those of becoming it. */
  async #own(session: Session, word: string): Promise<void> {
    if (sha256Hex(Buffer.from(word, 'hex')) !== session.word)
      throw new BlockError('permission', 'This is not the word of the source of this move');
    // As long as it has not been heard the source may be told that it is not.
    this.#assertGoesOn();
    session.isHeard = true;
    await this.#become(session);
  }

  /** Errors: busy where the process ends; those of keeping it; then it has not become so, and the next try may. */
  #become(session: Session): Promise<void> {
    return this.#becoming.run(async () => {
      if (session.phase === 'owned') return;
      if (session.phase === 'released') throw staysThere();
      this.#assertGoesOn();
      session.isHeard = true;
      const { runState } = this.#machine.parts;
      try {
        // Whoever says else meanwhile is answered, and obeyed.
        while (!(await this.#arrive(session, await this.#settle(session))));
      } catch (error) {
        await this.#machine.giveUp();
        throw error;
      }
      if (runState.isRunning) await this.#run();
      this.#error = undefined;
      this.#set('completed');
    });
  }

  /** Nobody else has its disks. Answers what the machine becomes. Again: as what is `wanted` by now. */
  async #settle({ state }: Session): Promise<Arrival> {
    const { runState } = this.#machine.parts;
    const { capabilities } = this.#settings;
    await state.endExports().catch((error: unknown) => this.#settings.warn(toBlockError(error).message));
    const wanted = runState.arrivesAs(state.apply());
    let status = wanted;
    const isLate = capabilities.has('late-block-activate') && status !== 'running';
    if (!isLate)
      await this.#start(status === 'running').catch((error: unknown) => {
        // Whoever has the images lets go of them, and `cont` tries again.
        if (status === 'running') status = 'paused';
        this.#settings.warn(toBlockError(error).message);
      });
    return { wanted, status };
  }

  /**
   * A restart finds the machine here from before on that anybody writes to it, or hears that it is. Errors: those of the
   * keeper; busy where the process ends, and would not be found so. Answers whether it is here: not where something else
   * is wanted by then.
   */
  async #arrive(session: Session, { wanted, status }: Arrival): Promise<boolean> {
    const { graph, runState } = this.#machine.parts;
    const { status: before } = session.state.assertWhole();
    return graph.betweenChanges(async () => {
      // Who ends has none any more.
      const { keeper } = graph;
      await keeper?.keep(this.#describe(keeper, status));
      if (!keeper) this.#assertGoesOn();
      if (runState.arrivesAs(before) !== wanted) return false;
      session.phase = 'owned';
      session.state.settle();
      runState.arrive(status);
      return true;
    });
  }

  #describe(keeper: GraphKeeper, status: RunStatus): string {
    this.#arrivesAs = status;
    try {
      return keeper.describe();
    } finally {
      this.#arrivesAs = undefined;
    }
  }

  /** Processors that another program has. */
  async #run(): Promise<void> {
    const { guestMemory, runState } = this.#machine.parts;
    await guestMemory()
      ?.start()
      .catch((error: unknown) => {
        this.#settings.warn(toBlockError(error).message);
        runState.stop();
      });
  }

  async #start(isRunning: boolean): Promise<void> {
    await this.#machine.activate();
    if (isRunning) await this.#machine.settleDevices();
  }

  /** The source hears it, now or when it comes again. */
  async #tellOwned(channel: MoveChannel): Promise<void> {
    try {
      await channel.send('owned', {});
      await channel.expect(['bye']);
      await this.#closeDoor();
    } catch {
      // It comes again, and asks.
    }
  }

  async #closeDoor(): Promise<void> {
    this.#isDoorClosed = true;
    this.#answered.notify();
    await this.#door?.close();
  }

  /** Resolves when the source has heard that the machine is here, and nobody may come any more. */
  answered(): Promise<void> {
    return this.#answered.wait();
  }

  /** A source whose connection was cut after it had said its word. */
  async #answerAgain(channel: MoveChannel, hello: MessageOf<'hello'>['body']): Promise<void> {
    const session = this.#session;
    if (session?.id !== hello.session) return channel.send('known', { state: 'unknown' });
    if (this.#channel) this.#channel.close();
    await this.#idle.until(() => this.#channel === undefined);
    if (session.phase === 'released')
      return channel.send('known', { state: 'released', word: session.backWord });
    if (session.phase === 'coming') return channel.send('known', { state: 'unknown' });
    if (session.phase === 'owned') {
      await channel.send('known', { state: 'owned' });
      await channel.expect(['bye']);
      return this.#closeDoor();
    }
    this.#channel = channel;
    await channel.send('known', { state: 'taken' });
    const { body } = await channel.expect(['go'], LAST_WORD_MS);
    if (session.phase === 'taken') await this.#own(session, body.word);
    await this.#tellOwned(channel);
  }

  // ---- another process in the place of this one

  /** Undefined: no machine has come. */
  passed(): PassedArrival | undefined {
    if (!this.#session || (this.#session.phase !== 'owned' && this.#arrivesAs === undefined))
      return undefined;
    const { id } = this.#session;
    if (!this.#door) return { session: id };
    const { address, isOnce, tls } = this.#door;
    return { session: id, door: { isOnce, ...(!this.#isDoorClosed && given({ address, tls })) } };
  }

  /** As in the process that has passed it. Errors: those of `open`. */
  async restore(
    { session: id, door }: PassedArrival,
    open: (door: PassedDoor, take: (stream: ByteStream) => void) => Promise<Door>,
  ): Promise<void> {
    // Its words have done what they were for.
    this.#session = { id, word: '', backWord: '', state: this.#newState(), phase: 'owned', isHeard: true };
    this.#status = 'completed';
    if (!door) return;
    this.#door = await open(door, (stream) => void this.#serve(stream));
    this.#isDoorClosed = door.address === undefined;
  }

  // ---- by hand

  /** Decides that the machine is here. Errors: invalid for a wrong word, or where there is nothing to decide. */
  async claim({ word, force = false }: { word?: string; force?: boolean }): Promise<void> {
    const session = this.#session;
    if (session?.phase === 'owned')
      throw new BlockError('invalid', 'There is nothing to decide: the machine is here');
    if (session?.phase === 'released') throw staysThere();
    if (session?.phase !== 'taken' || this.#channel)
      throw new BlockError('invalid', 'There is no move that waits for its last word');
    if (word === undefined && !force)
      throw new BlockError('invalid', 'The source may have the machine', {
        hint: "Give the word that x-move-release answers there, or 'force': true if it is certain that it runs no more.",
      });
    if (word !== undefined) await this.#own(session, word);
    else await this.#become(session);
    this.#settings.emit('X_MOVE', this.moveInfo());
  }

  /**
   * The word by which the source knows that the machine is never taken here. Errors: invalid; those of the keeper, where a
   * restart may find that it was.
   */
  release(): Promise<string> {
    return this.#becoming.run(async () => {
      const session = this.#session;
      if (!session || session.phase === 'owned' || this.#channel)
        throw new BlockError('invalid', 'There is no move that waits for its last word');
      if (session.phase === 'taken') {
        if (session.isHeard) await this.#keepAway();
        session.phase = 'released';
        // They may not have gone when the move failed, which could not be kept then.
        await this.#machine.giveUp();
        session.state.remove();
        this.#tell('released by hand');
      }
      return session.backWord;
    });
  }

  /** Errors: those of the keeper. */
  async #keepAway(): Promise<void> {
    const { graph } = this.#machine.parts;
    await graph.betweenChanges(async () => graph.keeper?.keep(graph.keeper.describe(), true));
  }

  /** Links break. */
  hangUp(): void {
    for (const channel of this.#channels) channel.close();
  }

  /** The process has been told to end, which may take a while. */
  end(): void {
    this.#isEnding = true;
  }

  /** The engine ends. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.end();
    await this.#door?.close();
    for (const channel of this.#channels) channel.close();
    await this.#idle.until(() => this.#channels.size === 0);
  }

  /** `isAlwaysTold`: also to those who have not asked for events, as QEMU does where it begins to listen. */
  #set(status: MigrationStatus, isAlwaysTold = false): void {
    assert(!this.#isClosed || status !== 'setup', 'closed');
    this.#status = status;
    if (isAlwaysTold || this.#settings.capabilities.has('events'))
      this.#settings.emit('MIGRATION', { status });
  }
}

function staysThere(): BlockError {
  return new BlockError('busy', 'The machine has stayed at the source: it is never taken here');
}

function whyUnsure({ isHeard }: Session): string {
  const text = 'All of the machine is here';
  return isHeard
    ? `${text}, and is ours, but cannot be kept`
    : `${text}, but the source's word that it is ours never came`;
}

function shown(address: SocketAddress): NonNullable<MigrationInfo['socket-address']>[number] {
  switch (address.type) {
    case 'unix':
      return { type: 'unix', path: address.path };
    case 'fd':
      return { type: 'fd', str: String(address.fd) };
    case 'inet': {
      const family = address.host.includes(':') ? { ipv6: true } : { ipv4: true };
      return { type: 'inet', host: address.host, port: String(address.port), ...family };
    }
  }
}
