import { assert, defined } from '../../base/assert.js';
import { deferred, type Deferred, Notifier } from '../../base/async.js';
import { CancelSignal } from '../../base/cancel-signal.js';
import { BlockError, toBlockError } from '../../base/error.js';
import { given } from '../../base/given.js';
import type { MigrationInfo, MigrationStatus, MoveInfo } from '../../schema/migration.js';
import type { ByteStream } from '../../wire/migration/byte-stream.js';
import { MoveChannel, RefusedByPeer } from '../../wire/migration/channel.js';
import { SectionsDigest } from '../../wire/migration/digest.js';
import type { RunStatus } from '../run-state.js';
import type { MachineState, MovedBitmaps } from './machine-state.js';
import { MoveProgress } from './progress.js';
import { assertOwner, OWNERS, type Phase } from './phase.js';
import { LAST_WORD_MS, type MoreToMove, type MoveSettings, type Route } from './settings.js';
import { UnknownProtocol } from './routes.js';
import { askForOwner, MoveWords } from './words.js';

const FIRST_RETRY_MS = 250;
const LONGEST_RETRY_MS = 5_000;

/** A move that has ended here, for another process. A type alias: it is JSON. */
export type PassedLeaving = {
  info: MigrationInfo;
  moveInfo: MoveInfo;
  /** The move whose word was never said, which the destination may wait for. */
  lastSession?: string;
};

/** The source of a move: docs/MIGRATION.md says which message means what, and who has the machine when. */
export class SourceMove {
  readonly #settings: MoveSettings;
  readonly #machine: MachineState;
  #status: MigrationStatus = 'none';
  #error: string | undefined;
  #phase: Phase = 'running';
  #before: RunStatus = 'running';
  /** What another process has told of the last move, which has ended. */
  #past: PassedLeaving | undefined;
  /** From begin() on. */
  #words: MoveWords | undefined;
  /** Of the last move that was decided by hand: whatever still goes on of it has no say any more. */
  #claimed: MoveWords | undefined;
  #claiming: Promise<void> = Promise.resolve();
  /** The last one, whose word was never said. */
  #lastSession: string | undefined;
  #channel: MoveChannel | undefined;
  /** On which the destination is being asked who has the machine. */
  #asking: MoveChannel | undefined;
  /** Of connections that are on their way. */
  readonly #opening = new Set<CancelSignal>();
  #progress: MoveProgress;
  #isCancelled = false;
  #isClosed = false;
  #isSaved = false;
  /** Asked for postcopy: nothing is left to send by then, so it is but a state that is told. */
  #tellsPostcopy = false;
  readonly #changed = new Notifier();
  #continued: Deferred<void> | undefined;
  #more: MoreToMove = {};
  /** Settled when nothing more happens by itself. */
  #ended: Promise<void> = Promise.resolve();

  constructor(settings: MoveSettings, machine: MachineState) {
    this.#settings = settings;
    this.#machine = machine;
    this.#progress = new MoveProgress(settings.host.clock);
  }

  get status(): MigrationStatus {
    return this.#status;
  }

  get isUnderWay(): boolean {
    return ['setup', 'active', 'pre-switchover', 'device', 'postcopy-active', 'cancelling'].includes(
      this.#status,
    );
  }

  /** Resolves when the move under way has come to its end, or to where it waits for the other end. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /** Errors: kind busy while the images are, or may be, another machine's. */
  assertOwner(): void {
    assertOwner(this.#phase);
  }

  /** The destination has the machine, or may have it. */
  get hasLeft(): boolean {
    return OWNERS[this.#phase] !== 'here';
  }

  info(): MigrationInfo {
    if (this.#past) return this.#past.info;
    const status = this.#status;
    if (status === 'none') return {};
    return {
      status,
      ...(['setup', 'cancelling', 'cancelled', 'failed'].includes(status)
        ? {}
        : this.#progress.figures(status)),
      ...(this.#error !== undefined && { 'error-desc': this.#error }),
    };
  }

  moveInfo(): MoveInfo {
    if (this.#past) return this.#past.moveInfo;
    return {
      role: this.#status === 'none' ? 'none' : 'source',
      owner: OWNERS[this.#phase],
      ...(this.#words && { session: this.#words.session }),
      ...(this.#channel?.lastSent !== undefined && { 'last-sent': this.#channel.lastSent }),
      ...(this.#channel?.lastSeen !== undefined && { 'last-seen': this.#channel.lastSeen }),
      ...(this.#phase === 'said' && { reason: this.#why() }),
    };
  }

  /** Undefined: none was begun. */
  passed(): PassedLeaving | undefined {
    assert(!this.isUnderWay && !this.hasLeft, 'a move that has ended here');
    if (this.#status === 'none') return undefined;
    return { info: this.info(), moveInfo: this.moveInfo(), ...given({ lastSession: this.#lastSession }) };
  }

  /** As in the process that has passed it. */
  restore(past: PassedLeaving): void {
    this.#past = past;
    this.#status = past.info.status ?? 'none';
    this.#lastSession = past.lastSession;
  }

  #why(): string {
    const why = this.#error === undefined ? '' : ` (${this.#error})`;
    return `The destination was told to take the machine, and has not said that it has it${why}`;
  }

  /** A move begins. Errors: those of `route`, for what is wrong with where it goes; nothing has changed then. */
  begin(route: () => Route, more: MoreToMove = {}): void {
    this.#more = more;
    this.#past = undefined;
    this.#error = undefined;
    this.#phase = 'running';
    this.#isCancelled = false;
    this.#isSaved = false;
    this.#tellsPostcopy = false;
    this.#channel = undefined;
    this.#progress = new MoveProgress(this.#settings.host.clock);
    const words = new MoveWords(this.#settings.host.random);
    this.#words = words;
    this.#set('setup');
    let opened: Route;
    try {
      opened = route();
    } catch (error) {
      if (!(error instanceof UnknownProtocol)) this.#error = toBlockError(error).message;
      this.#set('failed');
      throw error;
    }
    this.#ended = this.#run(opened, words);
  }

  async #run(route: Route, words: MoveWords): Promise<void> {
    try {
      const stream = await this.#connect(route);
      const { host, parameters } = this.#settings;
      this.#channel = new MoveChannel(stream, host.clock, () => Number(parameters.values['max-bandwidth']));
      this.#progress.channel = this.#channel;
      if (this.#isCancelled) throw new BlockError('cancelled', 'cancelled');
      await this.#transfer(this.#channel, words);
    } catch (error) {
      if (this.#claimed !== words) await this.#fail(error, route, words);
    }
    if (this.#claimed === words) await this.#claiming;
  }

  /** Errors: those of connecting; cancelled. */
  async #connect(route: Route): Promise<ByteStream> {
    const unwanted = new CancelSignal();
    this.#opening.add(unwanted);
    try {
      return await route.open(unwanted);
    } catch (error) {
      if (unwanted.isCancelled) this.#assertWanted();
      throw error;
    } finally {
      this.#opening.delete(unwanted);
    }
  }

  #stopOpening(): void {
    for (const unwanted of this.#opening) unwanted.cancel();
  }

  /** `isCut`: it is an error of sending. */
  async #told(error: unknown, isCut = toBlockError(error).kind === 'closed'): Promise<unknown> {
    if (!isCut || this.#isCancelled) return error;
    return this.#channel?.refusalOr(error, LAST_WORD_MS) ?? error;
  }

  async #transfer(channel: MoveChannel, words: MoveWords): Promise<void> {
    const digest = new SectionsDigest();
    const isOneWay = channel.stream.isOneWay;
    await this.#greet(channel);
    this.#pass();
    this.#set('active');
    const bitmaps = isOneWay ? undefined : this.#bitmaps();
    await channel.sendSections(this.#machine.describe(bitmaps, this.#more.exports), digest);
    await channel.send('described', {});
    if (!isOneWay) await channel.expect(['accepted']);
    this.#assertWanted();
    await this.#sendMemory(channel, digest);
    await this.#stop();
    await channel.sendSections(this.#machine.save(this.#before, this.#bitmaps()), digest);
    await channel.send('end', digest.end);
    if (!isOneWay) this.#said().backDigest = (await channel.expect(['ready'])).body.word;
    this.#assertWanted();
    await this.#machine.inactivate();
    this.#phase = 'released';
    if (this.#tellsPostcopy) this.#set('postcopy-active');
    await channel.send('give', {});
    if (!isOneWay) await channel.expect(['taken']);
    this.#assertWanted();
    if (isOneWay) await this.#sayToNobody(channel);
    else await this.#sayWord(channel, words);
  }

  async #sendMemory(channel: MoveChannel, digest: SectionsDigest): Promise<void> {
    try {
      await this.#machine.sendMemory(async (section) => {
        this.#assertWanted();
        await channel.sendSections([section], digest);
      });
    } catch (error) {
      this.#assertWanted();
      throw await this.#told(error, true);
    }
  }

  async #greet(channel: MoveChannel): Promise<void> {
    await this.#sayHello(channel, this.#said().hello);
    this.#assertWanted();
  }

  async #sayHello(channel: MoveChannel, words: MoveWords['hello'] & { rehearsal?: true }): Promise<void> {
    await channel.open();
    await channel.send('hello', {
      ...words,
      machine: this.#machine.identity,
      ...(this.#lastSession !== undefined && { before: this.#lastSession }),
    });
    if (!channel.stream.isOneWay) await channel.expect(['welcome']);
  }

  #bitmaps(isAsked = this.#more.bitmaps): MovedBitmaps | undefined {
    const { capabilities, parameters } = this.#settings;
    if (!(isAsked ?? capabilities.has('dirty-bitmaps'))) return undefined;
    return { mapping: parameters.values['block-bitmap-mapping'] };
  }

  async #stop(): Promise<void> {
    this.#progress.stopped();
    this.#before = this.#machine.parts.runState.finishMigrate();
    this.#phase = 'stopped';
    await this.#machine.quiesce();
    await this.#more.whileStopped?.();
    this.#assertWanted();
    if (this.#settings.capabilities.has('pause-before-switchover')) {
      this.#continued = deferred();
      this.#set('pre-switchover');
      await Promise.race([
        this.#continued.promise,
        this.#changed.until(() => this.#isCancelled || this.#isClosed),
      ]);
      this.#continued = undefined;
      this.#assertWanted();
      this.#set('device');
    }
    this.#pass();
  }

  /**
   * Asks who listens whether this machine could come, of which nothing changes there. Answers how long a message there and
   * back takes, at most, in ms: a destination speaks first. Errors: those of connecting; closed where no livedisk is; what
   * the destination refuses with.
   */
  async rehearse(route: Route, bitmaps: boolean): Promise<number> {
    const { clock, random } = this.#settings.host;
    const startMs = clock.nowMs();
    const channel = new MoveChannel(await this.#connect(route), clock);
    try {
      await channel.greeted();
      const roundTripMs = clock.nowMs() - startMs;
      await this.#sayHello(channel, { ...new MoveWords(random).hello, rehearsal: true });
      const description = this.#machine.describe(this.#bitmaps(bitmaps));
      await channel.sendSections(description, new SectionsDigest());
      await channel.send('described', {});
      await channel.expect(['accepted']);
      await channel.send('bye', {});
      return roundTripMs;
    } finally {
      channel.close();
    }
  }

  #said(): MoveWords {
    return defined(this.#words, 'the words of a move that has begun');
  }

  /** From here on only the destination can say who has the machine. */
  async #sayWord(channel: MoveChannel, words: MoveWords): Promise<void> {
    this.#phase = 'said';
    await channel.send('go', { word: words.word });
    await channel.expect(['owned']);
    if (this.#claimed === words) return;
    this.#complete();
    await channel.send('bye', {}).catch(() => undefined);
    channel.close();
  }

  /** Whoever reads it later has the machine then; what was not written whole is of no use to anybody. */
  async #sayToNobody(channel: MoveChannel): Promise<void> {
    await channel.send('go', { word: this.#said().word });
    // A command may take all, and go on for ever.
    const unwanted = this.#changed.until(() => this.#isCancelled || this.#isClosed);
    await Promise.race([channel.stream.finish(), unwanted]);
    this.#assertWanted();
    this.#isSaved = true;
    this.#complete();
  }

  #complete(): void {
    // What lies in a file has no owner: here it may go on, too, as far as the images' locks allow it.
    this.#phase = this.#isSaved ? 'running' : 'moved';
    this.#machine.parts.runState.postMigrate();
    this.#progress.ended();
    this.#error = undefined;
    this.#set('completed');
  }

  async #fail(cause: unknown, route: Route, words: MoveWords): Promise<void> {
    const error = this.#phase === 'said' ? cause : await this.#told(cause);
    const { message } = toBlockError(error);
    this.#hangUp(message);
    if (this.#phase === 'said' && !(error instanceof RefusedByPeer)) {
      this.#error = message;
      this.#tellDoubt();
      await this.#settle(route, words);
      return;
    }
    if (!this.#isCancelled) {
      this.#error = message;
      this.#settings.warn(message);
    }
    await this.#takeBack();
  }

  /** Where the word has not been said, it never will be, which the destination should know. */
  #hangUp(reason: string): void {
    const channel = this.#channel;
    if (channel && this.#phase !== 'said' && this.#phase !== 'moved')
      channel.send('refuse', { reason }).catch(() => undefined);
    channel?.close();
  }

  /** The machine is here, and goes on as it was. */
  async #takeBack(): Promise<void> {
    const { runState } = this.#machine.parts;
    const phase = this.#phase;
    let mayRun = true;
    if (phase === 'released' || phase === 'said') {
      this.#phase = 'stopped';
      mayRun = await this.#reactivate();
    }
    this.#lastSession = this.#said().session;
    // Once it has failed another move may begin.
    const isCancelled = this.#isCancelled;
    if (!isCancelled) this.#set('failed');
    if (phase !== 'running') runState.returnFromMigrate(mayRun);
    this.#phase = 'running';
    await this.#machine.parts
      .guestMemory()
      ?.stay(runState.isRunning)
      .catch((error: unknown) => this.#settings.warn(toBlockError(error).message));
    if (isCancelled) this.#set('cancelled');
  }

  /** The destination, where it shares the images, lets go of them when it hears that the link is gone, or a little later. */
  async #reactivate(): Promise<boolean> {
    const { clock } = this.#settings.host;
    const endMs = clock.nowMs() + LAST_WORD_MS + FIRST_RETRY_MS;
    for (;;)
      try {
        await this.#machine.activate();
        return true;
      } catch (error) {
        if (clock.nowMs() < endMs && !this.#isClosed) {
          await clock.sleep(FIRST_RETRY_MS);
          continue;
        }
        this.#settings.warn(toBlockError(error).message);
        return false;
      }
  }

  /** Asks the destination, as often as it takes, until one of both knows who has the machine. */
  async #settle(route: Route, words: MoveWords): Promise<void> {
    let pauseMs = FIRST_RETRY_MS;
    while (!this.#isDecided(words) && route.canReopen) {
      await this.#pause(pauseMs, words);
      pauseMs = Math.min(2 * pauseMs, LONGEST_RETRY_MS);
      if (this.#isDecided(words)) return;
      await this.#ask(route, words).catch((error: unknown) => {
        if (!this.#isDecided(words)) this.#error = toBlockError(error).message;
      });
    }
  }

  /** Nothing is left to decide of this move, and another one may be under way. */
  #isDecided(words: MoveWords): boolean {
    return this.#claimed === words || this.#phase !== 'said' || this.#isClosed;
  }

  async #pause(durationMs: number, words: MoveWords): Promise<void> {
    const late = deferred();
    const timer = this.#settings.host.clock.setTimer(durationMs, () => late.resolve());
    await Promise.race([late.promise, this.#changed.until(() => this.#isDecided(words))]);
    timer.cancel();
  }

  async #ask(route: Route, words: MoveWords): Promise<void> {
    const channel = new MoveChannel(await this.#connect(route), this.#settings.host.clock);
    try {
      if (this.#isDecided(words)) return;
      this.#asking = channel;
      const owner = await askForOwner(channel, words, this.#machine.identity, () => {
        if (!this.#isDecided(words)) this.#channel = channel;
        return this.#isDecided(words);
      });
      if (this.#isDecided(words)) return;
      if (owner === 'here') await this.#takeBack();
      else if (owner === 'there') this.#moved();
    } finally {
      channel.close();
    }
  }

  #moved(): void {
    this.#complete();
    this.#changed.notify();
    this.#settings.emit('X_MOVE', this.moveInfo());
  }

  #tellDoubt(): void {
    const why = this.#why();
    this.#settings.warn(why);
    this.#settings.emit('X_MOVE', this.moveInfo());
  }

  /** Decides by hand that the machine is here. Errors: invalid for a wrong word; busy where there is nothing to decide. */
  async claim({ word, force = false }: { word?: string; force?: boolean }): Promise<void> {
    if (this.#phase === 'moved' && !force) this.assertOwner();
    if (this.#phase !== 'said' && this.#phase !== 'moved')
      throw new BlockError('invalid', 'There is no move that waits for its last word');
    if (word !== undefined && !this.#said().isBackWord(word))
      throw new BlockError('invalid', 'This is not the word of the destination of this move');
    if (word === undefined && !force)
      throw new BlockError('invalid', 'The destination may have the machine', {
        hint: "Give the word that x-move-release answers there, or 'force': true if it is certain that it runs no more.",
      });
    this.#error = 'claimed by hand';
    this.#claimed = this.#words;
    // Of a link that is gone without a word only its silence tells, and what comes late changes nothing any more.
    this.#channel?.close();
    this.#asking?.close();
    this.#claiming = this.#phase === 'moved' ? this.#claimBack() : this.#takeBack();
    await this.#claiming;
    this.#changed.notify();
    this.#settings.emit('X_MOVE', this.moveInfo());
  }

  /** The destination has had the machine, and is no more. It stays stopped. Errors: those of activate. */
  async #claimBack(): Promise<void> {
    await this.#machine.activate();
    this.#phase = 'running';
  }

  /** The word by which the destination has the machine: it will never be here again. Errors: invalid. */
  release(): string {
    if (this.#phase !== 'said')
      throw new BlockError('invalid', 'There is no move that waits for its last word');
    return this.#said().word;
  }

  // ---- what users do meanwhile

  /** Where nothing waits it has no effect, as in QEMU. Errors: invalid, in QEMU's words. */
  continue(state: MigrationStatus): void {
    if (this.#status !== state)
      throw new BlockError('invalid', `Migration not in expected state: ${this.#status}`);
    this.#continued?.resolve();
  }

  /** Errors: invalid, in QEMU's words. */
  startPostcopy(): void {
    // Without RAM, dirty bitmaps are all that could come later.
    if (!this.#settings.capabilities.has('dirty-bitmaps'))
      throw new BlockError(
        'invalid',
        'Enable postcopy with migrate_set_capability before the start of migration',
      );
    if (this.#status === 'none')
      throw new BlockError('invalid', 'Postcopy must be started after migration has been started');
    this.#tellsPostcopy = true;
  }

  /** Errors: busy when it is too late. */
  cancel(): void {
    if (!this.isUnderWay || this.#status === 'cancelling') return;
    if (this.#phase === 'said' || this.#phase === 'moved') this.assertOwner();
    this.#isCancelled = true;
    this.#set('cancelling');
    if (this.#phase === 'running') this.#machine.parts.guestMemory()?.giveUp();
    this.#stopOpening();
    this.#hangUp('cancelled by the source');
    this.#changed.notify();
  }

  /** The link breaks. */
  hangUp(): void {
    this.#stopOpening();
    this.#channel?.close();
  }

  /** The engine ends. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#stopOpening();
    this.#channel?.close();
    this.#asking?.close();
    this.#changed.notify();
    await this.#ended;
  }

  #assertWanted(): void {
    if (this.#isCancelled || this.#isClosed) throw new BlockError('cancelled', 'The migration was cancelled');
  }

  #pass(): void {
    const pass = this.#progress.nextPass();
    if (this.#settings.capabilities.has('events')) this.#settings.emit('MIGRATION_PASS', { pass });
  }

  #set(status: MigrationStatus): void {
    assert(this.#status !== status || status === 'setup', () => `${status} again`);
    this.#status = status;
    if (status === 'active') this.#progress.begun();
    if (this.#settings.capabilities.has('events')) this.#settings.emit('MIGRATION', { status });
  }
}
