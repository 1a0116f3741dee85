import type { Json } from '../block/driver.js';
import type { DeviceModel } from './device-models.js';
import type { Endpoint } from './endpoint.js';

/** The program in which the guest runs, where livedisk started one and is its disks. */
export interface GuestProgram {
  /** Where it comes for a disk that is new. */
  endpointFor(model: DeviceModel): Endpoint;
  /** Why a command of ours, QMP's or the human monitor's, cannot be where it runs the guest. */
  refusal(command: string): string | undefined;
  /** What a line of its own human monitor prints. */
  runHuman(line: string): Promise<string>;
  readonly memory: GuestMemory;
  /** Another process takes this one's place: nothing more is heard of it until goOn(). Answers why that is not so yet. */
  comeToRest(): string | undefined;
  goOn(): void;
  /** At rest. Errors: busy. */
  passed(): PassedGuest;
}

/** What another process needs to go on with it; descriptors stay the giver's. */
export interface PassedGuest {
  readonly data: { [key: string]: Json };
  readonly fds: readonly number[];
}

/** The memory and processors of a guest in that program, which moves them from host to host in its own stream. */
export interface GuestMemory {
  /** Sends all of it while the guest goes on; when that is done the guest rests. Errors: those of the program, of `send`. */
  leave(send: (bytes: Buffer) => Promise<void>): Promise<void>;
  /** What is under way of leave() is given up. */
  giveUp(): void;
  /** It has not left after all: the guest goes on, or not. */
  stay(isRunning: boolean): Promise<void>;
  /** The next bytes of another machine's. Errors: those of the program; closed when it has ended. */
  take(bytes: Buffer): Promise<void>;
  /** All of it is here, and the guest rests. Errors: corrupt where nothing came; those of the program. */
  assertWhole(): Promise<void>;
  /** What has come is of no use: the program, to which nothing can come again, ends. */
  drop(): void;
  /** The guest that has come runs. */
  start(): Promise<void>;
}
