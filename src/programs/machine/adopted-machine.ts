import type { PassedGuest } from '../../attach/guest-program.js';
import { BlockError } from '../../base/error.js';
import type { Engine } from '../../monitor/engine.js';
import { type PassedClient, QmpClient } from '../../wire/qmp/client.js';
import { BothWorlds, type PassedWorlds } from './both-worlds.js';
import { FrontEnds, type PassedFrontEnds } from './front-ends.js';
import { AdoptedProcess, endText, type GuestProcess, type PassedProcess } from './guest-process.js';
import { MachineMemory } from './memory.js';
import { refusalOf } from './routes.js';
import { endGuest, NOT_YET, type RunningMachine } from './running-machine.js';

interface Passed {
  client: PassedClient;
  worlds: PassedWorlds;
  process: PassedProcess;
  frontEnds: PassedFrontEnds;
}

/** A machine that another process has started, and that goes on with this one. */
export class AdoptedMachine implements RunningMachine {
  readonly #passed: Passed;
  readonly #fds: readonly number[];
  readonly #frontEnds: FrontEnds;
  readonly #memory: MachineMemory;
  #process: GuestProcess | undefined;
  #worlds: BothWorlds | undefined;
  #quit: () => void = () => undefined;
  failure: string | undefined;

  /** Before the engine gets its devices, which are made in the order of `paths`. Nothing is done to the guest yet. */
  constructor(engine: Engine, { data, fds }: PassedGuest, paths: readonly string[]) {
    this.#passed = data as unknown as Passed;
    this.#fds = fds;
    this.#frontEnds = FrontEnds.from(this.#passed.frontEnds, paths);
    this.#memory = new MachineMemory(engine.host.net, () => this.#process?.kill());
    engine.runState.servesStopped = true;
    engine.guestProgram = {
      memory: this.#memory,
      endpointFor: (model) => this.#frontEnds.endpointFor(model),
      refusal: refusalOf,
      ...NOT_YET,
    };
  }

  /** It is this process's. Errors: corrupt, for what no process passes; those of its socket. */
  async begin(engine: Engine): Promise<void> {
    const [monitor, lifeFd] = this.#fds;
    if (monitor === undefined || lifeFd === undefined)
      throw new BlockError('corrupt', 'What serves has not passed its guest');
    const { client, process, worlds: told } = this.#passed;
    const socket = await engine.host.net.connect({ type: 'fd', fd: monitor });
    const qmp = QmpClient.adopt(socket, client);
    this.#quit = () => void qmp.execute('quit').catch(() => undefined);
    const guest: AdoptedProcess = new AdoptedProcess(process, lifeFd, () => worlds.isShutDown);
    this.#process = guest;
    const worlds: BothWorlds = new BothWorlds(engine, {
      ...{ qmp, frontEnds: this.#frontEnds, memory: this.#memory },
      process: () => guest,
    });
    // It is asked nothing: it may wait for one of its disks, which nobody serves yet.
    worlds.goOnFrom(told);
    void guest.ended.then((end) => {
      this.#memory.ended();
      if (end.status !== 0) this.failure = endText(guest.program, end);
      engine.quitting.resolve();
    });
    this.#worlds = worlds;
    engine.guestProgram = worlds;
  }

  /** Clients are there. */
  serves(): void {
    this.#worlds?.tellKept();
  }

  async end(engine: Engine): Promise<void> {
    this.#frontEnds.removeSockets();
    if (await endGuest(engine, this.#process, this.#quit)) this.failure = undefined;
  }
}
