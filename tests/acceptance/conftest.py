from tests.integration.brokers import broker, certificates, new_mosquitto

__all__ = ["broker", "certificates", "new_mosquitto"]
