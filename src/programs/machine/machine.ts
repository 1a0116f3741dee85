import { accessSync, constants } from 'node:fs';
import { diskOf } from '../../monitor/devices.js';
import type { Engine } from '../../monitor/engine.js';
import type { DeviceModel } from '../../attach/device-models.js';
import type { Endpoint } from '../../attach/endpoint.js';
import type { Plugged } from '../../attach/machine.js';
import { MiB } from '../../base/limits.js';
import { BlockError } from '../../base/error.js';
import type { RunOptions } from '../run/options.js';
import { BothWorlds } from './both-worlds.js';
import { type SplitLine, splitCommandLine } from './command-line.js';
import { FrontEnds, wordsOf } from './front-ends.js';
import { endText, GuestProcess, MONITOR_FD } from './guest-process.js';
import { findMachineProgram, refuseInside, USUAL_PROGRAM } from './program.js';
import { refusalOf } from './routes.js';

const DEFAULT_MEMORY_BYTES = 128 * MiB;
const MEMORY_ID = 'livedisk.memory';
/** What a machine that is told to end has for it. */
const END_MS = 10_000;
/** When its disk does not answer it any more, it cannot end well. */
const FAILED_END_MS = 1_000;

/** The switch for a machine, taken out of a command line; QEMU's option of that name has its value in the next word. */
export function takeMachineSwitch(args: readonly string[]): { asked?: string; rest: string[] } | undefined {
  const at = args.findIndex((word, i) => {
    if (/^--?machine=./.test(word)) return true;
    const next = args[i + 1];
    return word === '--machine' && (next === undefined || next.startsWith('-'));
  });
  if (at < 0) return undefined;
  const [, asked] = /^--?machine=(.*)$/s.exec(args[at] ?? '') ?? [];
  return { rest: args.filter((_, i) => i !== at), ...(asked !== undefined && { asked }) };
}

/** `livedisk machine ARGS` as `livedisk run ARGS`. */
export function withMachineSwitch(args: readonly string[]): string[] {
  const isAsked = args.some((word) => /^--?machine=./.test(word));
  return isAsked ? [...args] : [`--machine=${USUAL_PROGRAM}`, ...args];
}

/** A machine that runs elsewhere on this host, and whose disks are ours: one life. */
export class MachineRun {
  readonly line: SplitLine;
  readonly #asked: string | undefined;
  #program = '';
  readonly #frontEnds: FrontEnds;
  #process: GuestProcess | undefined;
  #quit: () => void = () => this.#process?.kill();
  /** What it ended with that was no good end. */
  failure: string | undefined;

  /** Errors: invalid, unsupported for what cannot be. */
  constructor(args: readonly string[], asked: string | undefined) {
    this.#asked = asked;
    this.line = splitCommandLine(args);
    this.#frontEnds = new FrontEnds(this.line.memory !== 'private');
  }

  /** Before the engine gets its devices. Errors: not-found, with the package; invalid for one of livedisk's own. */
  prepare(engine: Engine): void {
    refuseInside();
    this.#program = findMachineProgram(this.#asked);
    if (this.line.memory === 'private')
      engine.warn(
        "warning: the machine's memory is not shared (share=on of its memory-backend), so its disks come over NBD",
      );
    engine.runState.servesStopped = true;
    engine.guestProgram = {
      endpointFor: (model: DeviceModel): Endpoint => this.#frontEnds.endpointFor(model),
      refusal: refusalOf,
      runHuman: () => Promise.reject(new BlockError('busy', 'The machine has not started')),
    };
  }

  /** All disks are there, and no client is. Errors: io when it does not start. */
  async boot(engine: Engine, options: RunOptions): Promise<void> {
    const usesTerminal = options.steps.some(
      (step) =>
        step.kind === 'multiplexed' || (step.kind === 'chardev' && step.device.backend.type === 'stdio'),
    );
    const hasTerminal = !usesTerminal && !options.daemonize;
    const guest = new GuestProcess(this.#program, this.#words(engine, options), { hasTerminal });
    this.#process = guest;
    await guest.starting(this.#join(engine, guest, options.startStopped));
    void guest.ended.then((end) => {
      if (end.status !== 0) this.failure = endText(this.#program, end);
      engine.quitting.resolve();
    });
  }

  async #join(engine: Engine, guest: GuestProcess, isStopped: boolean): Promise<void> {
    const qmp = await guest.connect(engine.host.clock);
    this.#quit = () => void qmp.execute('quit').catch(() => undefined);
    const worlds = new BothWorlds(engine, qmp, this.#frontEnds);
    engine.guestProgram = worlds;
    await worlds.begin();
    // It has answered, so it has its devices.
    this.#frontEnds.removeSockets();
    if (!isStopped) await qmp.execute('cont');
  }

  /** It ends, well if it can, before its disks do. */
  async end(engine: Engine): Promise<void> {
    this.#frontEnds.removeSockets();
    const guest = this.#process;
    if (!guest || guest.hasEnded) return;
    this.#quit();
    const patienceMs = engine.runState.status === 'io-error' ? FAILED_END_MS : END_MS;
    const timer = engine.host.clock.setTimer(patienceMs, () => guest.kill());
    await guest.ended;
    timer.cancel();
    this.failure = undefined;
  }

  #words(engine: Engine, { memoryBytes = DEFAULT_MEMORY_BYTES }: RunOptions): string[] {
    const plugged = [...engine.machine.devices];
    const isOnBoard = ({ path }: Plugged): boolean => path.startsWith('/machine/unattached/');
    const onBoard = plugged.filter(isOnBoard);
    const rest = plugged.filter((device) => !isOnBoard(device));
    const asked = this.line.devices;
    return [
      ...['-S', '-monitor', 'none'],
      ...['-chardev', `socket,id=livedisk.monitor,fd=${MONITOR_FD}`],
      ...['-mon', 'chardev=livedisk.monitor,mode=control'],
      ...(this.line.hasAccelerator ? [] : accelerators()),
      ...this.#memoryWords(memoryBytes),
      ...onBoard.flatMap((device) => this.#diskWords(engine, device, true)),
      ...this.line.theirs.flatMap((words) => {
        if ('length' in words) return words;
        const device = rest[words.device];
        return device ? this.#diskWords(engine, device, device.given?.['bus'] !== undefined) : [];
      }),
      ...rest.slice(asked).flatMap((device) => this.#diskWords(engine, device, false)),
    ];
  }

  #diskWords(engine: Engine, device: Plugged, isPlaced: boolean): string[] {
    const disk = diskOf(engine, device);
    return disk ? wordsOf(this.#frontEnds.of(device, disk, isPlaced)) : [];
  }

  /** Memory that is shared, so that disks are served in it. */
  #memoryWords(memoryBytes: number): string[] {
    if (this.line.memory !== 'default') return [];
    const prealloc = this.line.isPreallocated ? ',prealloc=on' : '';
    return [
      ...['-object', `memory-backend-memfd,id=${MEMORY_ID},size=${memoryBytes},share=on${prealloc}`],
      ...['-machine', `memory-backend=${MEMORY_ID}`],
    ];
  }
}

/** KVM, and where it cannot be, TCG. */
function accelerators(): string[] {
  try {
    for (const mode of [constants.R_OK, constants.W_OK]) accessSync('/dev/kvm', mode);
    return ['-accel', 'kvm', '-accel', 'tcg'];
  } catch {
    return ['-accel', 'tcg'];
  }
}
