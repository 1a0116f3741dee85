import { BlockError } from '../../base/error.js';
import { findBlkdebug } from '../../drivers/blkdebug/index.js';
import type { BlkdebugNode } from '../../drivers/blkdebug/index.js';
import { CommandFailure, type IoSession } from './session.js';

const UNSUPPORTED = 'Operation not supported';

function blkdebugOf(session: IoSession, failure: string): BlkdebugNode {
  const found = findBlkdebug(session.backend.node);
  if (!found) throw new CommandFailure(`${failure}: ${UNSUPPORTED}`);
  return found;
}

function tell(body: () => void): boolean {
  try {
    body();
    return true;
  } catch (error) {
    if (error instanceof BlockError) throw new CommandFailure(error.message);
    throw error;
  }
}

/** break event tag: the next request that announces the event stops there. */
export function breakCommand(session: IoSession, [event = '', tag = '']: readonly string[]): boolean {
  const { breakpoints } = blkdebugOf(session, 'Could not set breakpoint');
  const { output } = session;
  breakpoints.onSuspended = (stopped) => output.print(`blkdebug: Suspended request '${stopped}'\n`);
  breakpoints.onResumed = (stopped) => output.print(`blkdebug: Resuming request '${stopped}'\n`);
  return tell(() => breakpoints.add(event, tag));
}

export function removeBreakCommand(session: IoSession, [tag = '']: readonly string[]): boolean {
  const node = blkdebugOf(session, `Could not remove breakpoint ${tag}`);
  return tell(() => node.breakpoints.remove(tag));
}

export function resumeCommand(session: IoSession, [tag = '']: readonly string[]): boolean {
  const node = blkdebugOf(session, 'Could not resume request');
  return tell(() => node.breakpoints.resume(tag));
}

/** Waits until a request has stopped under the tag; where none can, says so (QEMU waits for ever). */
export async function waitBreakCommand(session: IoSession, [tag = '']: readonly string[]): Promise<boolean> {
  await blkdebugOf(session, 'Could not wait for breakpoint').whenSuspended(tag);
  return true;
}
