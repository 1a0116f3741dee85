import { accessSync, constants } from 'node:fs';
import { diskOf } from '../../monitor/devices.js';
import type { Engine } from '../../monitor/engine.js';
import type { DeviceModel } from '../../attach/device-models.js';
import type { Endpoint } from '../../attach/endpoint.js';
import type { Plugged } from '../../attach/machine.js';
import { assert } from '../../base/assert.js';
import { MiB } from '../../base/limits.js';
import type { RunOptions } from '../run/options.js';
import { BothWorlds } from './both-worlds.js';
import { type SplitLine, splitCommandLine } from './command-line.js';
import { escape, FrontEnds, wordsOf } from './front-ends.js';
import { endText, type GuestProcess, StartedProcess } from './guest-process.js';
import { endGuest, NOT_YET, type RunningMachine } from './running-machine.js';
import { MonitorDoor } from './monitor-door.js';
import { MachineMemory } from './memory.js';
import { findMachineProgram, refuseInside, USUAL_PROGRAM } from './program.js';
import { refusalOf } from './routes.js';

const DEFAULT_MEMORY_BYTES = 128 * MiB;
const MEMORY_ID = 'livedisk.memory';

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
export class MachineRun implements RunningMachine {
  readonly line: SplitLine;
  readonly #asked: string | undefined;
  #program = '';
  readonly #frontEnds: FrontEnds;
  #process: GuestProcess | undefined;
  #memory: MachineMemory | undefined;
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
    this.#memory = new MachineMemory(engine.host.net, () => this.#process?.kill());
    engine.guestProgram = {
      memory: this.#memory,
      endpointFor: (model: DeviceModel): Endpoint => this.#frontEnds.endpointFor(model),
      refusal: refusalOf,
      ...NOT_YET,
    };
  }

  /** All disks are there, and no client is. Errors: io when it does not start. */
  async boot(engine: Engine, options: RunOptions): Promise<void> {
    const usesTerminal = options.steps.some(
      (step) =>
        step.kind === 'multiplexed' || (step.kind === 'chardev' && step.device.backend.type === 'stdio'),
    );
    const hasTerminal = !usesTerminal && !options.daemonize;
    const door = await MonitorDoor.open(engine.host.net);
    const words = ['-chardev', `socket,id=livedisk.monitor,path=${escape(door.path)}`];
    const guest = new StartedProcess(this.#program, [...words, ...this.#words(engine, options)], {
      hasTerminal,
    });
    this.#process = guest;
    const waits = options.startStopped || options.incoming !== undefined;
    await guest.starting(this.#join(engine, door, waits)).finally(() => door.close());
    void guest.ended.then((end) => {
      this.#memory?.ended();
      if (end.status !== 0) this.failure = endText(this.#program, end);
      engine.quitting.resolve();
    });
  }

  async #join(engine: Engine, door: MonitorDoor, isStopped: boolean): Promise<void> {
    const qmp = await door.client(engine.host.clock);
    this.#quit = () => void qmp.execute('quit').catch(() => undefined);
    assert(this.#memory, 'prepared');
    const process = (): GuestProcess => {
      assert(this.#process, 'the program was started');
      return this.#process;
    };
    const worlds = new BothWorlds(engine, { qmp, frontEnds: this.#frontEnds, memory: this.#memory, process });
    engine.guestProgram = worlds;
    await worlds.begin();
    // It has answered, so it has its devices.
    this.#frontEnds.removeSockets();
    if (!isStopped) await qmp.execute('cont');
  }

  /** It ends, well if it can, before its disks do. */
  async end(engine: Engine): Promise<void> {
    this.#frontEnds.removeSockets();
    if (await endGuest(engine, this.#process, this.#quit)) this.failure = undefined;
  }

  #words(engine: Engine, { memoryBytes = DEFAULT_MEMORY_BYTES, incoming }: RunOptions): string[] {
    const plugged = [...engine.machine.devices];
    const isOnBoard = ({ path }: Plugged): boolean => path.startsWith('/machine/unattached/');
    const onBoard = plugged.filter(isOnBoard);
    const rest = plugged.filter((device) => !isOnBoard(device));
    const asked = this.line.devices;
    return [
      ...['-S', '-monitor', 'none'],
      ...['-mon', 'chardev=livedisk.monitor,mode=control'],
      // It comes through us.
      ...(incoming === undefined ? [] : ['-incoming', 'defer']),
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
    return disk ? wordsOf(this.#frontEnds.of(device, disk, { isPlaced })) : [];
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
