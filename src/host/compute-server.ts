import { parentPort } from 'node:worker_threads';
import { assert, defined } from '../base/assert.js';
import type { ComputeFunction } from './compute.js';
import { type ComputeReply, type ComputeRequest, packError } from './compute-messages.js';

type AnyFunction = Pick<ComputeFunction<never>, 'name' | 'prepare' | 'run'>;

/** The thread's side: does what it is asked, one after the other. Called once by a program's file. */
export function serveCompute(functions: readonly AnyFunction[]): void {
  const port = defined(parentPort, 'the port of a thread');
  const byName = new Map(functions.map((each) => [each.name, each]));
  const answer = async (request: ComputeRequest): Promise<ComputeReply> => {
    const { slot, name, input, output, parameters } = request;
    try {
      const wanted = byName.get(name);
      assert(wanted, () => `no compute function ${name}`);
      await wanted.prepare?.();
      return { slot, value: wanted.run(input, output, parameters as never) };
    } catch (error) {
      return { slot, value: -1, error: packError(error) };
    }
  };
  port.on('message', (request: ComputeRequest) => {
    void answer(request).then((reply) => port.postMessage(reply));
  });
}
