import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, copyFileSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { freePort } from '../kit/free-port.js';

const SSHD = '/usr/sbin/sshd';
const SFTP_SERVER = ['/usr/lib/openssh/sftp-server', '/usr/libexec/openssh/sftp-server'].find((path) =>
  existsSync(path),
);

/** Why there can be no server here; undefined: there can. */
export function withoutSsh(): string | undefined {
  if (!existsSync(SSHD)) return 'no sshd';
  if (SFTP_SERVER === undefined) return 'no sftp-server';
  const { stderr } = spawnSync('qemu-img', ['info', 'ssh://127.0.0.1:1/x'], { encoding: 'utf8' });
  return /Connection refused/.test(stderr) ? undefined : 'no qemu-img with ssh';
}

/** An SSH server of this user's, whom a key of an agent lets in: `where` is user@127.0.0.1:PORT. */
export async function startSshServer(
  context: TestContext,
  folder: string,
): Promise<{ where: string; pid: number | undefined }> {
  mkdirSync(folder, { mode: 0o700 });
  const path = (name: string): string => join(folder, name);
  for (const key of ['host', 'user']) run('ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', path(key));
  copyFileSync(path('user.pub'), path('authorized'));
  chmodSync(path('authorized'), 0o600);
  const port = await freePort();
  const lines = [
    `Port ${port}`,
    'ListenAddress 127.0.0.1',
    `HostKey ${path('host')}`,
    `AuthorizedKeysFile ${path('authorized')}`,
    'StrictModes no',
    'PasswordAuthentication no',
    'UsePAM no',
    'PidFile none',
    `Subsystem sftp ${SFTP_SERVER}`,
  ];
  writeFileSync(path('config'), `${lines.join('\n')}\n`);
  if (userInfo().uid === 0) mkdirSync('/run/sshd', { recursive: true });
  const server = spawn(SSHD, ['-D', '-f', path('config'), '-E', path('log')], { stdio: 'ignore' });
  context.after(() => server.kill());
  startAgent(context, path('agent'), path('user'));
  await untilListening(port);
  return { where: `${userInfo().username}@127.0.0.1:${port}`, pid: server.pid };
}

function startAgent(context: TestContext, socket: string, key: string): void {
  const agent = spawn('ssh-agent', ['-D', '-a', socket], { stdio: 'ignore' });
  const before = process.env['SSH_AUTH_SOCK'];
  process.env['SSH_AUTH_SOCK'] = socket;
  context.after(() => {
    agent.kill();
    if (before === undefined) delete process.env['SSH_AUTH_SOCK'];
    else process.env['SSH_AUTH_SOCK'] = before;
  });
  run('sh', '-c', `for i in $(seq 100); do ssh-add -q ${key} && exit 0; sleep 0.1; done; exit 1`);
}

function run(program: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${program}: ${stderr}`);
}

async function untilListening(port: number): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    const socket = connect(port, '127.0.0.1');
    const isThere = await Promise.race([
      once(socket, 'connect').then(() => true),
      once(socket, 'error').then(() => false),
    ]).catch(() => false);
    socket.destroy();
    if (isThere) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error('sshd does not listen');
}
