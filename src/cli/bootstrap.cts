// The program's entry. CommonJS, because the size of Node's thread pool must be set before anything uses the pool,
// and ES modules are loaded through it. Flushes and cold reads of several disks at once wait there.
process.env['UV_THREADPOOL_SIZE'] ??= '8';
// A short command ends before optimised code has paid for its compilation: V8 is to be sure that code is hot.
if (process.argv[2] === 'img')
  process.getBuiltinModule('node:v8').setFlagsFromString('--interrupt-budget=2000000');
const program: string = './program/main.js';
void import(program);
