import { BlockError } from '../base/error.js';
import { given } from '../base/given.js';
import type { Caller } from '../wire/qmp/registry.js';
import type { Parts } from './parts.js';

/** Descriptors that come with a command (SCM_RIGHTS): into a set that stands for a file, or by a name. */
export function registerDescriptors(engine: Parts<'command' | 'host' | 'descriptors'>): void {
  const { descriptors } = engine;
  const sets = engine.host.files.descriptorSets;
  engine.command('add-fd', ({ 'fdset-id': id, opaque }, caller) => {
    const { setId, fd } = sets.add(passed(caller), id, opaque);
    return { fd, 'fdset-id': setId };
  });
  engine.command('remove-fd', ({ 'fdset-id': id, fd }) => sets.remove(id, fd));
  engine.command('query-fdsets', () =>
    sets.list().map(({ setId, members }) => ({
      fds: members.map(({ fd, opaque }) => ({ fd, ...given({ opaque }) })),
      'fdset-id': setId,
    })),
  );
  engine.command('getfd', ({ fdname }, caller) => descriptors.add(fdname, passed(caller)));
  engine.command('closefd', ({ fdname }) => descriptors.close(fdname));
}

function passed(caller: Caller): number {
  const fd = caller.takeDescriptor();
  if (fd === undefined) throw new BlockError('invalid', 'No file descriptor supplied via SCM_RIGHTS');
  return fd;
}
