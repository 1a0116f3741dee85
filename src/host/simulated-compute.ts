import { BlockError, errnoError } from '../base/error.js';
import type { ComputeOptions, ComputeTask, HostCompute } from './compute.js';
import type { Machine } from './simulated-machine.js';

/**
 * The same functions, done on the spot when the simulation's time for them has come. A fault of the operation 'compute'
 * whose path is the function's name is a thread that ends.
 */
export class SimulatedCompute implements HostCompute {
  readonly #machine: Machine;
  readonly #boot: number;
  #isClosed = false;

  constructor(machine: Machine) {
    this.#machine = machine;
    this.#boot = machine.boot;
  }

  tryRun<P>({ function: wanted, input, output, parameters }: ComputeTask<P>): number {
    if (input.byteLength + output.byteLength > wanted.maxSyncBytes) return -1;
    if (wanted.prepare || this.#isClosed || this.#boot !== this.#machine.boot) return -1;
    if (!this.#machine.mayTry('compute', wanted.name)) return -1;
    return wanted.run(input, output, parameters);
  }

  async run<P>(task: ComputeTask<P>, { signal }: ComputeOptions = {}): Promise<number> {
    const { function: wanted, input, output, parameters } = task;
    this.#check(signal);
    await wanted.prepare?.();
    this.#check(signal);
    try {
      const operation = { kind: 'compute', path: wanted.name, boot: this.#boot } as const;
      const value = await this.#machine.perform(operation, () => wanted.run(input, output, parameters));
      this.#check(signal);
      return value;
    } catch (error) {
      // A function that fails, or a thread that ends, may have come any way.
      output.set(this.#machine.random.bytes(output.byteLength));
      throw error;
    }
  }

  async room(): Promise<void> {}

  async close(): Promise<void> {
    this.#isClosed = true;
  }

  #check(signal: AbortSignal | undefined): void {
    if (this.#isClosed) throw new BlockError('closed', 'The compute threads have been ended');
    if (signal?.aborted) throw errnoError('ECANCELED');
  }
}
