import t from 'tap'
import { readProxyConfig } from '../../../proxy/config.ts'
import { ClientAddresses } from '../../../proxy/http/client-address.ts'
import { badNetworks } from '../../../proxy/networks.ts'

const ask = (trusted: readonly string[], remoteAddress: string | undefined, forwarded?: string | string[]): string =>
  new ClientAddresses(trusted).of({
    socket: { remoteAddress },
    headers: forwarded === undefined ? {} : { 'x-forwarded-for': forwarded },
  })

t.test('nobody is believed who is not named', async t => {
  t.equal(ask([], '203.0.113.9', '198.51.100.1'), '203.0.113.9')
  t.equal(ask(['10.0.0.0/8'], '203.0.113.9', '198.51.100.1'), '203.0.113.9')
  t.equal(ask(['::1'], '127.0.0.1', '198.51.100.1'), '127.0.0.1')
  t.equal(ask(['10.0.0.0/8'], undefined, '198.51.100.1'), '')
})

t.test('behind a named balancer the right-most address that is no balancer is the client', async t => {
  const trusted = ['10.0.0.0/8', 'fd00::/8', '192.0.2.7']
  t.equal(ask(trusted, '10.1.2.3', '198.51.100.1'), '198.51.100.1')
  t.equal(ask(trusted, '::ffff:10.1.2.3', '198.51.100.1'), '198.51.100.1', 'also on a socket that listens on ::')
  t.equal(ask(trusted, '10.1.2.3', '6.6.6.6, 198.51.100.1'), '198.51.100.1', 'what the client made up is not believed')
  t.equal(ask(trusted, '10.1.2.3', '6.6.6.6, 198.51.100.1, 192.0.2.7,10.9.9.9'), '198.51.100.1', 'through three hops')
  t.equal(ask(trusted, '10.1.2.3', ['6.6.6.6, 198.51.100.1', '10.9.9.9']), '198.51.100.1', 'in two headers')
  t.equal(ask(trusted, 'fd00::1', '2001:db8::5'), '2001:db8::5')
  t.equal(ask(trusted, 'fd00::1', '[2001:db8::5]:4711'), '2001:db8::5')
  t.equal(ask(trusted, '10.1.2.3', '198.51.100.1:4711'), '198.51.100.1')
  t.equal(ask(trusted, '10.1.2.3', '10.7.7.7, 10.8.8.8'), '10.7.7.7', 'a client from the inside')
  t.equal(ask(trusted, '10.1.2.3', ''), '10.1.2.3')
  t.equal(ask(trusted, '10.1.2.3'), '10.1.2.3')
})

t.test('an entry that is no address ends the search at the hop that wrote it', async t => {
  const trusted = ['10.0.0.0/8']
  for (const junk of ['unknown', '_hidden', '1.2.3', '999.1.1.1', '<script>', '1.2.3.4 5.6.7.8']) {
    t.equal(ask(trusted, '10.1.2.3', `198.51.100.1, ${junk}, 10.9.9.9`), '10.9.9.9', junk)
  }
  const many = Array.from({ length: 5_000 }, () => '10.0.0.1').join(',')
  t.equal(ask(trusted, '10.1.2.3', `198.51.100.1,${many}`), '10.0.0.1', 'a list without end is not walked to its end')
})

t.test('a network that is none is refused at the start, by name', async t => {
  const bad = ['10.0.0.0/33', 'fd00::/129', 'balancer', '10.0.0.0/', '10.0.0/8', '10.0.0.1/-1', 'fe80::1%eth0', '']
  t.same(badNetworks(['10.0.0.0/8', '10.1.2.3', '0.0.0.0/0', '::/0', 'fd00::1', ...bad]), bad)
  t.throws(() => new ClientAddresses(['balancer']), RangeError)
  const env = {
    HOLDFAST_SECRET: 'x'.repeat(16),
    HOLDFAST_POSTGRES_URL: 'postgres://h/d',
    HOLDFAST_STATE_FOLDER: '/s',
  }
  t.throws(() => readProxyConfig({ args: ['--trust-proxy', '10.0.0.0/8,balancer'], env }), {
    code: 'CONFIG_INVALID',
    message: /HOLDFAST_TRUST_PROXY contains 'balancer'/,
  })
  t.same(readProxyConfig({ args: ['--trust-proxy', '10.0.0.0/8,::1'], env }).trustProxy, ['10.0.0.0/8', '::1'])
})
