import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { img } from '../../../test/kit/img-tool.js';
import { type ToolAnswer } from '../../../test/kit/tool-answer.js';
import { withFolder } from '../../../test/kit/test-disk.js';

/** What images of strangers name: the kinds of CVE-2024-4467 and of extents that are other files than the image's. */
const SECRET = 'the host keeps this to itself';

function descriptor(...extents: string[]): string {
  const head = '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n';
  return `${head}createType="monolithicFlat"\n${extents.join('\n')}\n`;
}

test('extents are plain files, whatever their names look like', () =>
  withFolder(async (folder) => {
    const secret = join(folder, 'secret');
    writeFileSync(secret, SECRET.padEnd(512));
    const image = join(folder, 'x.vmdk');
    const json = `json:{\\"driver\\":\\"raw\\",\\"file\\":{\\"driver\\":\\"file\\",\\"filename\\":\\"${secret}\\"}}`;
    for (const name of [
      json.replaceAll('\\"', "'"),
      'nbd://127.0.0.1:1/x',
      `file:${secret}`,
      'host_device:/dev/null',
    ]) {
      writeFileSync(image, descriptor(`RW 1 FLAT "${name}" 0`));
      const { code, stderr } = await img('convert', '-f', 'vmdk', '-O', 'raw', image, join(folder, 'out'));
      assert.equal(code, 1, name);
      assert.match(stderr, /must be a plain file/);
    }
  }));

test('info opens no extents, and says what the descriptor says', () =>
  withFolder(async (folder) => {
    const image = join(folder, 'x.vmdk');
    writeFileSync(image, descriptor('RW 4096 FLAT "/dev/no such file" 0'));
    const { code, stdout } = await img('info', '-f', 'vmdk', image);
    assert.equal(code, 0);
    assert.match(stdout, /virtual size: 2 MiB[^]*filename: \/dev\/no such file\n/);
  }));

test('with --untrusted an image opens nothing outside its folder', () =>
  withFolder(async (folder) => {
    mkdirSync(join(folder, 'in', 'deeper'), { recursive: true });
    const at = (name: string): string => join(folder, 'in', name);
    writeFileSync(join(folder, 'secret'), SECRET.padEnd(512));
    writeFileSync(at('deeper/own'), Buffer.alloc(512, 7));
    const read = (image: string, ...more: string[]): Promise<ToolAnswer> =>
      img('convert', ...more, '-O', 'raw', image, join(folder, 'out'));
    for (const outside of ['../secret', join(folder, 'secret'), 'deeper/../../secret']) {
      writeFileSync(at('x.vmdk'), descriptor(`RW 1 FLAT "${outside}" 0`));
      assert.equal((await read(at('x.vmdk'))).code, 0, outside);
      assert.match((await read(at('x.vmdk'), '--untrusted')).stderr, /not in its folder/, outside);
    }
    writeFileSync(at('x.vmdk'), descriptor('RW 1 FLAT "deeper/own" 0'));
    assert.equal((await read(at('x.vmdk'), '--untrusted')).code, 0);
    const overlay = (backing: string): Promise<ToolAnswer> =>
      img('create', '-q', '-f', 'qcow2', '-u', '-b', backing, '-F', 'raw', at('x.qcow2'), '512');
    for (const outside of [
      '../secret',
      `json:{"driver":"file","filename":"${folder}/secret"}`,
      'nbd:127.0.0.1:1',
    ]) {
      assert.equal((await overlay(outside)).code, 0);
      assert.match((await read(at('x.qcow2'), '--untrusted')).stderr, /not in its folder/, outside);
      const chain = await img('info', '--backing-chain', '--untrusted', at('x.qcow2'));
      assert.match(chain.stderr, /not in its folder/, outside);
    }
    await overlay('deeper/own');
    assert.equal((await read(at('x.qcow2'), '--untrusted')).code, 0);
  }));
