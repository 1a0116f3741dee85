import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test, type TestContext } from 'node:test';
import { PROJECT } from '../kit/program.js';
import { ToolPair } from './tool-pair.js';

/** Files on a web server, asked of QEMU's curl driver and of ours. */
const { stderr } = spawnSync('qemu-img', ['info', 'http://127.0.0.1:1/x'], { encoding: 'utf8' });
const skip = /Couldn't connect/.test(stderr) ? false : 'no qemu-img with curl';

async function served(context: TestContext, folder: string): Promise<string> {
  const program = join(import.meta.dirname, 'file-server-program.ts');
  const server = spawn(process.execPath, ['--import', 'tsx', program, folder], {
    cwd: PROJECT,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  context.after(() => server.kill());
  const port = await new Promise<string>((resolve) =>
    server.stdout.once('data', (text) => resolve(String(text))),
  );
  return `http://127.0.0.1:${port.trim()}`;
}

const times = (text: string): string =>
  text
    .replace(/after \d+ m/g, 'after N m')
    .replace(/^qemu-io: curl: /gm, 'curl: ')
    .replace(/#block\d+/g, '#block')
    .replace(/^.*GLib.*\n/gm, '');

test('files of a web server are told of, read, converted and refused alike', { skip }, async (context) => {
  const pair = new ToolPair(context);
  pair.prepare(
    'qemu-img create -q -f raw a.raw 1M',
    'qemu-io -f raw -c "write -P 7 0 300k" a.raw >/dev/null',
    'qemu-img create -q -f qcow2 -b a.raw -F raw over.q',
    'qemu-io -f qcow2 -c "write -P 9 64k 64k" over.q >/dev/null',
    'head -c 700 a.raw >odd',
    ': >empty',
  );
  // One server for both: names are in what is printed.
  const url = await served(context, pair.path('theirs', ''));
  const json = (driver: string, path: string, more = ''): string =>
    `'json:{"driver":"${driver}","url":"${path}"${more}}'`;
  const http = (more: string, path = '/f/a.raw'): string => json('http', url + path, more);
  const lines = [
    `img info ${url}/f/a.raw`,
    `img info --output=json ${url}/f/over.q`,
    `img info --backing-chain ${url}/f/over.q`,
    `img info ${url}/f/odd`,
    `img info ${url}/f/empty`,
    `img info ${url}/redirect/a.raw`,
    `img info ${url}/f/a.raw?x=/y`,
    `img info ${url.replace('//', '//user:password@')}/private/a.raw`,
    `img info ${url}/private/a.raw`,
    `img info ${url}/noranges/a.raw`,
    `img info ${url}/nolength/a.raw`,
    `img info ${url}/status/404`,
    `img info ${url}/status/500`,
    `img info http://127.0.0.1:1/x`,
    `img info http://nowhere.invalid/x`,
    `img info http:x`,
    `img info ${http('')}`,
    `img info ${http(',"cookie":"a=b"')}`,
    `img info ${http(',"timeout":100000')}`,
    `img info ${http(',"timeout":-1')}`,
    `img info ${http(',"readahead":1000')}`,
    `img info ${http(',"readahead":"64k"')}`,
    `img info ${http(',"cookie":"a","cookie-secret":"s"')}`,
    `img info ${http(',"cookie-secret":"s"')}`,
    `img info ${http(',"x":1')}`,
    `img info ${json('http', 'https://a/b')}`,
    `img info ${json('https', `${url}/f/a.raw`)}`,
    `img info 'json:{"driver":"http"}'`,
    `img info --object secret,id=s,data=password ${http(',"username":"user","password-secret":"s"', '/private/a.raw')}`,
    `img info --object secret,id=s,data=x=y ${http(',"cookie-secret":"s"')}`,
    `img map --output=json ${url}/f/over.q`,
    `img check ${url}/f/over.q`,
    `img compare ${url}/f/over.q over.q`,
    `img measure -O qcow2 ${url}/f/over.q`,
    `img convert -O raw ${url}/f/over.q flat`,
    `img convert -O raw a.raw ${url}/f/new`,
    `img create -f qcow2 ${url}/f/new 1M`,
    `img create -f qcow2 -b ${url}/f/a.raw -F raw top.q`,
    `img info --backing-chain top.q`,
    `img commit top.q`,
    `img resize -f raw ${url}/f/a.raw 2M`,
    `io -f raw -c 'read 0 512' ${url}/f/a.raw`,
    `io -r -f raw -c 'read -P 7 299k 1k' -c 'read -P 0 300k 1k' ${url}/f/a.raw`,
    `io -r -f raw -c 'read 0 512' -c 'read 512 512' ${url}/f/odd`,
    `io -r -f raw -c 'write 0 512' ${url}/f/a.raw`,
    `io -r -f raw -c 'read 64k 900k' ${url}/cut/a.raw`,
  ];
  for (const line of lines) await pair.alike(line, times);
  assert.equal(pair.shell('ours', 'sha256sum <flat'), pair.shell('theirs', 'sha256sum <flat'));
});
