import assert from 'node:assert/strict';
import { test } from 'node:test';
import { holdKeeping, MigrationBed, setCapabilities, statusOf } from './migration-bed.js';

for (const isLate of [false, true])
  for (const [command, before, after] of [
    ['stop', 'running', 'paused'],
    ['cont', 'paused', 'running'],
  ] as const)
    test(`${command} while it is written that the machine is here holds${isLate ? ', with the images opened late, too' : ''}`, async (t) => {
      const bed = await MigrationBed.shared(t, { destination: { startStopped: command === 'cont' } });
      const { source, destination } = bed;
      if (isLate) await setCapabilities(destination, 'late-block-activate');
      const { begun, goOn, kept } = holdKeeping(destination);
      await bed.listen();
      await source.execute('migrate', { uri: bed.uri });
      await begun;
      const answered = destination.execute(command);
      await new Promise((resolve) => setTimeout(resolve, 50));
      goOn.resolve();
      await Promise.all([answered, source.engine.moves.source.ended]);
      assert.equal(await statusOf(destination), after);
      assert.equal(kept[0], before);
      destination.engine.graph.keeper = undefined;
      if (command === 'stop') {
        assert.equal(kept.at(-1), after);
        assert.ok(!destination.events.some(({ event }) => event === 'RESUME'));
        await destination.execute('cont');
      }
      await destination.guest('write -P 9 0 64k');
    });
