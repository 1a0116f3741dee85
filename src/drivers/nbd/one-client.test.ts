import assert from 'node:assert/strict';
import { test } from 'node:test';
import { onServer, SIZE } from '../../../test/kit/nbd-bed.js';
import { toolAnswer } from '../../../test/kit/tool-answer.js';
import { imgMain } from '../../programs/img/main.js';
import { allDrivers } from '../index.js';

/** A server that serves one client and ends, as `qemu-nbd` without -t, has to do for whoever leaves the format open. */
const NAMES: ReadonlyArray<readonly string[]> = [
  ['nbd+unix:///disk?socket=/tmp/nbd'],
  ['json:{"file": {"driver": "nbd", "server": {"type": "unix", "path": "/tmp/nbd"}, "export": "disk"}}'],
  ['--image-opts', 'file.driver=nbd,file.server.type=unix,file.server.path=/tmp/nbd,file.export=disk'],
];

for (const name of NAMES) {
  let clients = 0;
  test(
    `one connection is enough to find out a format and to read the image: ${name.join(' ')}`,
    onServer(
      async ({ host, server }) => {
        for (const command of ['info', 'map', 'check', 'measure']) {
          clients = 0;
          const words = command === 'measure' ? ['measure', '-O', 'raw', ...name] : [command, ...name];
          const answer = await toolAnswer((out) => imgMain(words, out, host, allDrivers));
          assert.equal(answer.code, command === 'check' ? 63 : 0, `${command}: ${answer.stderr}`);
          if (command === 'info')
            assert.match(answer.stdout, new RegExp(`file format: raw\n.*\\(${SIZE} bytes`));
          while (server.connectionCount > 0) await host.clock.sleep(1);
          assert.equal(clients, 1, command);
        }
      },
      { onLeft: () => void clients++ },
    ),
  );
}
