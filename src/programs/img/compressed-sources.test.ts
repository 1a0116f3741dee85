import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { assertSameBytes, withFolder } from '../../../test/kit/test-disk.js';
import { toolAnswer } from '../../../test/kit/tool-answer.js';
import { allDrivers } from '../../drivers/index.js';
import { createRealHost } from '../../host/real.js';
import { ioMain } from '../io/main.js';
import { imgMain } from './main.js';

const MiB = 1024 * 1024;

async function succeed(main: typeof imgMain, ...args: string[]): Promise<void> {
  const { code, stdout, stderr } = await toolAnswer((out) => main(args, out, createRealHost(), allDrivers));
  assert.equal(code, 0, `${args.join(' ')}: ${stdout}${stderr}`);
}

for (const cluster of ['64k', '2M'])
  test(`compressed clusters of ${cluster} are copied where plain ones would be by the kernel`, () =>
    withFolder(async (folder) => {
      const at = (name: string): string => join(folder, name);
      const content = Buffer.alloc(4 * MiB);
      for (let i = 0; i < content.length; i += 512) content.fill(1 + (i % 251), i, i + 512);
      writeFileSync(at('raw'), content);
      const holds = async (format: string, name: string): Promise<void> => {
        await succeed(imgMain, 'convert', '-f', format, '-O', 'raw', at(name), at('flat'));
        assertSameBytes(readFileSync(at('flat')), content, name);
      };
      const to = ['-f', 'raw', '-O', 'qcow2', '-o', `cluster_size=${cluster}`];
      const base = ['-b', at('base'), '-F', 'qcow2'];
      await succeed(imgMain, 'create', '-q', '-f', 'qcow2', at('base'), '4M');
      await succeed(imgMain, 'convert', '-c', ...to, '-B', at('base'), '-F', 'qcow2', at('raw'), at('top'));

      await succeed(imgMain, 'convert', '-C', '-f', 'qcow2', '-O', 'raw', at('top'), at('copy'));
      await holds('raw', 'copy');
      await succeed(imgMain, 'commit', '-q', '-f', 'qcow2', '-d', at('top'));
      await holds('qcow2', 'base');

      // What a cluster lacks of a write comes from below.
      await succeed(imgMain, 'convert', '-c', ...to, at('raw'), at('base'));
      await succeed(imgMain, 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', ...base, at('over'));
      await succeed(ioMain, '-f', 'qcow2', '-c', 'write -P 7 3M 512', at('over'));
      content.fill(7, 3 * MiB, 3 * MiB + 512);
      await holds('qcow2', 'over');
    }));

for (const options of [[], ['-C'], ['-c']])
  test(`a grain of a stream of which a part has data is whole, converted with '${options.join(' ')}'`, () =>
    withFolder(async (folder) => {
      const at = (name: string): string => join(folder, name);
      const content = Buffer.alloc(MiB);
      for (let i = 4096; i < 65536; i++) content[i] = 1 + ((i * i) % 251);
      writeFileSync(at('raw'), '');
      truncateSync(at('raw'), MiB);
      const fd = openSync(at('raw'), 'r+');
      writeSync(fd, content, 4096, 61440, 4096);
      closeSync(fd);
      const to = ['-f', 'raw', '-O', 'vmdk', '-o', 'subformat=streamOptimized'];
      await succeed(imgMain, 'convert', ...options, ...to, at('raw'), at('stream'));
      await succeed(imgMain, 'convert', '-f', 'vmdk', '-O', 'raw', at('stream'), at('copy'));
      assertSameBytes(readFileSync(at('copy')), content, 'the copy');
    }));
