import assert from 'node:assert/strict';
import type { ComputeTask } from '../../src/host/compute.js';
import { add, crash, prepared, refuse } from './compute-functions.js';
import type { Check } from './host-conformance.js';

function adding(lengthBytes: number, summand: number): ComputeTask<number> {
  const input = Buffer.from(Array.from({ length: lengthBytes }, (_, i) => i % 256));
  return { function: add, input, output: Buffer.alloc(lengthBytes), parameters: summand };
}

function assertAdded({ input, output, parameters }: ComputeTask<number>): void {
  assert.deepEqual(
    [...output],
    Array.from(input, (byte) => (byte + parameters) % 256),
  );
}

function shared(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.byteLength));
  copy.set(bytes);
  return copy;
}

export function computeConformance(check: Check): void {
  check('a small task is done now or not at all, a large one never now', async ({ host: { compute } }) => {
    for (let i = 0; i < 20; i++) {
      const small = adding(32, i + 1);
      if (compute.tryRun(small) === 32) assertAdded(small);
      else assert.deepEqual(small.output, Buffer.alloc(32));
    }
    const large = adding(33, 1);
    assert.equal(compute.tryRun(large), -1);
    assert.deepEqual(large.output, Buffer.alloc(33));
    await compute.close();
  });

  check(
    'tasks of any memory and size come out right, many at once',
    async ({ host: { compute, random } }) => {
      const tasks = Array.from({ length: 60 }, (_, i) => adding(i === 7 ? 3_000_000 : random.below(5000), i));
      const mixed = tasks.map((task, i) => ({
        ...task,
        ...(i % 2 === 1 && { input: shared(task.input) }),
        ...(i % 3 === 1 && { output: shared(task.output) }),
      }));
      const values = await Promise.all(mixed.map((task) => compute.run(task)));
      for (const [i, task] of mixed.entries()) {
        assert.equal(values[i], task.output.byteLength);
        assertAdded(task);
      }
      await compute.close();
    },
  );

  check("a function's error keeps its kind and words", async ({ host: { compute } }) => {
    const task = { function: refuse, input: Buffer.alloc(9), output: Buffer.alloc(9), parameters: undefined };
    const error = { name: 'BlockError', kind: 'corrupt', message: 'these bytes are wrong', errno: 'EIO' };
    await assert.rejects(compute.run(task), error);
    await compute.close();
  });

  check('a thread that ends fails its task; others go on, and later ones', async ({ host, failCompute }) => {
    const { compute } = host;
    failCompute(crash.name);
    const task = { function: crash, input: Buffer.alloc(1), output: Buffer.alloc(0), parameters: undefined };
    for (let round = 0; round < 3; round++) {
      await assert.rejects(compute.run(task), { name: 'BlockError', kind: 'io', errno: 'EIO' });
      const next = adding(100, round);
      await compute.run(next);
      assertAdded(next);
    }
    await compute.close();
  });

  check('what has to be prepared is, and is done in threads only', async ({ host: { compute } }) => {
    const task = {
      function: prepared,
      input: Buffer.alloc(0),
      output: Buffer.of(7, 8),
      parameters: undefined,
    };
    assert.equal(compute.tryRun(task), -1);
    assert.equal(await compute.run(task), 1);
    assert.deepEqual(task.output, Buffer.of(1, 8));
    await compute.close();
  });

  check('a task can be taken back before and while it waits', async ({ host: { compute } }) => {
    await assert.rejects(compute.run(adding(9, 1), { signal: AbortSignal.abort() }), { errno: 'ECANCELED' });
    const controller = new AbortController();
    const runs = Array.from({ length: 50 }, (_, i) =>
      compute.run(adding(100, i), i % 2 === 0 ? { signal: controller.signal } : {}),
    );
    const settled = Promise.allSettled(runs);
    controller.abort();
    for (const [i, { status }] of (await settled).entries())
      assert.equal(status, i % 2 === 0 ? 'rejected' : 'fulfilled', `task ${i}`);
    await compute.close();
  });

  check('after close() there is nothing', async ({ host: { compute } }) => {
    const runs = Promise.allSettled([1, 2, 3].map((i) => compute.run(adding(100, i))));
    await compute.close();
    for (const run of await runs)
      if (run.status === 'rejected') assert.equal((run.reason as { kind: string }).kind, 'closed');
    await assert.rejects(compute.run(adding(100, 1)), { name: 'BlockError', kind: 'closed' });
    assert.equal(compute.tryRun(adding(1, 1)), -1);
    await compute.room();
    await compute.close();
  });
}
