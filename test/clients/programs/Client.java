// SPDX-License-Identifier: Apache-2.0

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;

/** Java's HttpClient: java Client HTTP_1_1|HTTP_2. A request for each line "METHOD URL FILE" of the input. */
public class Client {
  public static void main(String[] args) throws Exception {
    HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.valueOf(args[0])).build();
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = in.readLine()) != null; ) {
      String[] asked = line.split(" ");
      HttpRequest.BodyPublisher body =
          asked[2].equals("-") ? HttpRequest.BodyPublishers.noBody() : HttpRequest.BodyPublishers.ofFile(Path.of(asked[2]));
      try {
        HttpRequest request = HttpRequest.newBuilder(URI.create(asked[1])).method(asked[0], body).build();
        HttpResponse<byte[]> r = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
        byte[] hash = MessageDigest.getInstance("SHA-256").digest(r.body());
        System.out.println(r.statusCode() + " " + r.headers().firstValue("X-Server").orElse("-") + " " + HexFormat.of().formatHex(hash));
      } catch (Exception e) {
        System.out.println("error " + e);
      }
    }
  }
}
