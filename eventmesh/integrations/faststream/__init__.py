"""An existing FastStream app joins the mesh as a service. A whole app, on RabbitMQ:

    from uuid import UUID

    from faststream import FastStream
    from faststream.rabbit import RabbitBroker
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    from eventmesh import Event, Service
    from eventmesh.integrations.faststream.annotations import Transaction
    from eventmesh.integrations.faststream.rabbit import RabbitMesh

    class Base(DeclarativeBase): ...

    class Invoice(Base):
        __tablename__ = "invoices"
        order_id: Mapped[UUID] = mapped_column(primary_key=True)

    class OrderPlaced(Event, name="orders.order_placed", version=1, key="order_id"):
        order_id: UUID

    class InvoiceSent(Event, name="billing.invoice_sent", version=1, key="order_id"):
        order_id: UUID

    service = Service("billing", metadata=Base.metadata)
    broker = RabbitBroker(service.settings.broker_url)
    mesh = RabbitMesh(service, broker)
    app = FastStream(broker, lifespan=mesh.lifespan)
    sent = mesh.publisher(InvoiceSent)

    @mesh.subscriber(OrderPlaced)
    async def send_invoice(order: OrderPlaced, tx: Transaction) -> InvoiceSent:
        tx.session.add(Invoice(order_id=order.order_id))
        return InvoiceSent(order_id=order.order_id)

On Redis, write Redis for Rabbit and redis for rabbit; nothing else changes. Settings come from the
environment, as for a worker: EVENTMESH_BROKER_URL, EVENTMESH_BILLING_DATABASE_URL. The app's other
subscribers and publishers are unaffected.

Messages are read by contract (envelope, source, version, upcasters, validation), deduped by the
inbox in the handler's own transaction, retried with back-off, and dead-lettered if they cannot be
read or run out of retries. The handler's subscription is an ordinary one of the service: `eventmesh
dlq list billing` lists its dead letters, `replay` delivers them again, and a worker can take the
subscription over one day. What a handler returns or publishes goes into the outbox;
`sent.publish(…)` outside of a handler goes to the broker at once, as CloudEvents.

Some things no middleware can change, because they happen in FastStream's read loop:

- Each message has a transaction and an acknowledgement of its own: hundreds a second, not
  thousands. Order within a key holds only with `concurrency=1`, and not for what is retried.
- FastStream reconnects to a lost broker: on Redis it tries every five seconds, and if Redis lost
  its data, FastStream ends the app, which must be started again.
- A killed process gives nothing back. RabbitMQ delivers its messages again at once, Redis after the
  visibility timeout (EVENTMESH_VISIBILITY_TIMEOUT).
- A poison message, which kills its process, is dead-lettered after EVENTMESH_MAX_DELIVERIES
  deliveries, as in a worker; until then somebody must restart the process.
- The mesh is the innermost middleware. One that is added to the broker after it is inside the
  transaction, and must not swallow the handler's errors; those outside see no errors, because what
  failed is stored for a retry.
- Redis Streams only, on one server: neither FastStream's lists and channels nor its cluster and
  Sentinel brokers. Its in-memory test brokers know nothing of the mesh.
"""
