import { closeSync, constants as fileConstants, openSync } from 'node:fs';
import { errnoError } from '../base/error.js';
import type { Koffi } from './koffi.js';
import type { NativeFunction } from './libc.js';
import type { NativeCalls } from './native-calls.js';

/** struct termios of glibc, with room to spare. */
const TERMIOS_BYTES = 128;
const O_CLOEXEC = 0o2000000;
const TERMINAL_FLAGS = fileConstants.O_RDWR | fileConstants.O_NOCTTY;
/** poll(2): nobody has the other side open. */
const POLLHUP = 0x10;

/** Pseudo terminals (pty(7)). */
export class TerminalCalls {
  readonly #calls: NativeCalls;

  constructor(calls: NativeCalls) {
    this.#calls = calls;
  }

  /** A new pseudo terminal that passes bytes as they are, by its own side's descriptor, close-on-exec. Errors: by errno. */
  openTerminal(): { fd: number; path: string } {
    const { posixOpenpt, unlockpt, ptsname, tcgetattr, cfmakeraw, tcsetattr } = terminalCalls(
      this.#calls.library.koffi,
    );
    const { value: fd, errno } = this.#calls.now(posixOpenpt, TERMINAL_FLAGS | O_CLOEXEC);
    if (fd < 0) throw errnoError(errno, 'Failed to create PTY');
    const name = Buffer.alloc(64);
    if (unlockpt(fd) < 0 || ptsname(fd, name, name.length) !== 0)
      throw errnoError(this.#calls.lastErrno(), 'Failed to create PTY');
    const path = name.toString('latin1', 0, name.indexOf(0));
    const other = openSync(path, TERMINAL_FLAGS);
    const termios = Buffer.alloc(TERMIOS_BYTES);
    tcgetattr(other, termios);
    cfmakeraw(termios);
    tcsetattr(other, 0, termios);
    closeSync(other);
    return { fd, path };
  }

  /** Whether somebody has the other side of a pseudo terminal open. */
  isTerminalOpen(fd: number): boolean {
    const pollfd = Buffer.alloc(8);
    pollfd.writeInt32LE(fd, 0);
    this.#calls.now(this.#calls.library.poll, pollfd, 1, 0);
    return (pollfd.readInt16LE(6) & POLLHUP) === 0;
  }
}

function terminalCalls(
  koffi: Koffi,
): Record<'posixOpenpt' | 'unlockpt' | 'ptsname' | 'tcgetattr' | 'cfmakeraw' | 'tcsetattr', NativeFunction> {
  const libc = koffi.load(null);
  return {
    posixOpenpt: libc.func('int posix_openpt(int flags)'),
    unlockpt: libc.func('int unlockpt(int fd)'),
    ptsname: libc.func('int ptsname_r(int fd, void *name, size_t n)'),
    tcgetattr: libc.func('int tcgetattr(int fd, void *termios)'),
    cfmakeraw: libc.func('void cfmakeraw(void *termios)'),
    tcsetattr: libc.func('int tcsetattr(int fd, int when, const void *termios)'),
  };
}
