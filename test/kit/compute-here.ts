import type { ComputeTask, HostCompute } from '../../src/host/compute.js';

/** All tasks are done on the spot. */
export const computeHere: HostCompute = {
  tryRun<P>({ function: wanted, input, output, parameters }: ComputeTask<P>): number {
    return wanted.prepare ? -1 : wanted.run(input, output, parameters);
  },
  async run<P>({ function: wanted, input, output, parameters }: ComputeTask<P>): Promise<number> {
    await wanted.prepare?.();
    return wanted.run(input, output, parameters);
  },
  room: () => Promise.resolve(),
  close: () => Promise.resolve(),
};
