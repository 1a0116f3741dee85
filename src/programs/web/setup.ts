import { BlockError } from '../../base/error.js';
import type { Host } from '../../host/host.js';
import { fileNameOf, imageOf } from '../../view/model.js';
import type { WebOptions } from '../../web/server.js';
import { targetOver } from '../points/targets.js';
import { lookBeside } from '../screen/beside.js';
import { lookAtFiles, pathOf } from '../screen/file-facts.js';
import { readMapOf } from '../screen/offline.js';
import type { AllowedFiles } from './allowed-files.js';
import { linesOver } from './console-lines.js';

export interface FileAccess {
  readonly host: Host;
  readonly files: AllowedFiles;
  readonly servers: WebOptions['servers'];
  /** From where relative names of images are seen. */
  readonly folder: string | undefined;
}

/** What a page needs of the rest of the program. Of the files of a server at another machine's address, nothing is looked at. */
export function programsParts({
  host,
  files,
  servers,
  folder,
}: FileAccess): Pick<
  WebOptions,
  'allowFile' | 'allowNewFile' | 'linesOver' | 'pointsOver' | 'lookAtFiles' | 'readMap' | 'lookBeside'
> {
  const isHere = (server: string): boolean =>
    servers.some(({ name, address }) => name === server && address.type === 'unix');
  return {
    allowFile: async (name) => files.find(name),
    allowNewFile: async (name) => files.findNew(name),
    linesOver,
    pointsOver: (link) => targetOver(host, link, folder),
    lookAtFiles: async (server, view) => (isHere(server) ? lookAtFiles(view, folder) : new Map()),
    readMap: async (server, view, id) => {
      const image = imageOf(view, id);
      if (!image || !isHere(server)) throw new BlockError('unsupported', 'its files are not on this machine');
      return readMapOf(host, view, id, (one) => files.find(pathOf(one, folder) ?? fileNameOf(one)));
    },
    lookBeside: async (server, view) => {
      files.assertAny();
      if (!isHere(server)) throw new BlockError('unsupported', 'its files are not on this machine');
      return lookBeside(host, view, folder ?? files.first, (one) => files.hasFolder(one));
    },
  };
}
